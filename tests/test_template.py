from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import BadArgument, NotFound, TargetExists
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.template import RECORD as RECORD_FILE
from qmpsnap.model.template import to_text
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.run.keepers import Keepers
from qmpsnap.template import Template
from tests.model.test_template import KEEPER, RECORD

if TYPE_CHECKING:
    from pathlib import Path


def test_template_spells_itself_as_json() -> None:
    template: Template[Any] = Template("/t", RECORD, None, unkept=["/d/base.qcow2: no"])
    spelled = template.to_json()
    assert json.loads(json.dumps(spelled)) == {
        "name": "t1",
        "directory": "/t",
        "created": "2024-05-01T12:00:00.000000+00:00",
        "memory_bytes": 64 << 20,
        "disks": {"vda": ["/d/s1.qcow2", "/d/base.qcow2"]},
        "keepers": {KEEPER: "/d/s1.qcow2"},
        "taken": False,
        "chains": {},
        "active": {},
        "unkept": ["/d/base.qcow2: no"],
        "standstill_s": None,
    }


async def test_clone_without_a_launcher_is_refused() -> None:
    template: Template[Any] = Template("/t", RECORD, None)
    with pytest.raises(BadArgument, match="launcher"):
        async with template.clone():
            raise AssertionError


async def test_images_of_a_template_that_was_moved_stay(tmp_path: Path) -> None:
    place = tmp_path.resolve()
    (place / "base").touch()
    view = DiskView("vda", "t1", (ViewLayer(str(place / "base"), "raw"),), virtual_size=1 << 20)
    keepers = Keepers("template", str(place / "t1"))
    await keepers.create([view], "t1", synced=False)
    keepers.release()
    template: Template[Any] = Template(str(place / "t1"), replace(RECORD, keepers=Frozen(keepers.made)), None)
    with pytest.raises(NotFound, match="there is no template") as caught:
        await template.remove()
    assert caught.value.hint.startswith("if it was moved, remove it there")
    (file,) = keepers.made
    assert sorted(map(str, place.iterdir())) == sorted([str(place / "base"), file])


async def test_template_is_not_removed_in_place_of_another_one_of_its_directory(tmp_path: Path) -> None:
    place = tmp_path / "t1"
    place.mkdir(mode=0o700)
    for name, text in [("memory", ""), (RECORD_FILE, to_text(replace(RECORD, created="2025-05-01")))]:
        (place / name).write_text(text)
        (place / name).chmod(0o600)
    template: Template[Any] = Template(str(place), RECORD, None)
    with pytest.raises(TargetExists, match="another template is in"):
        await template.remove()
    assert sorted(path.name for path in place.iterdir()) == ["memory", RECORD_FILE]
