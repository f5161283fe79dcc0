from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Busy, NotFound, TargetExists
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.run.keepers import Keepers
from qmpsnap.run.template_files import Partial
from qmpsnap.template_removal import remove_template
from tests.each import each

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal


@each("kind", ["template", "clone", "fork"])
async def test_images_of_what_is_gone_are_removed_together(
    kind: Literal["template", "clone", "fork"], tmp_path: Path
) -> None:
    place = tmp_path.resolve() / kind
    for name in ("a", "b"):
        (place / name).mkdir(parents=True)
        (place / name / "base").touch()
    files = [str(place / name / "base") for name in ("a", "b")]
    view = DiskView("vda", "t1", tuple(ViewLayer(file, "raw") for file in files), virtual_size=1 << 20)
    keepers, others = (Keepers(kind, str(place / name)) for name in ("t1", "t2"))
    for one in (keepers, others):
        await one.create([view], "t1", synced=False)
    file = next(iter(keepers.made))
    with pytest.raises(Busy, match="the layer is needed by"):
        await remove_template(file)
    keepers.release()
    if kind != "fork":
        (place / "t1").mkdir()
    if kind == "clone":
        with pytest.raises(Busy, match="the overlays of a clone"):
            await remove_template(file)
        (place / "t1").rmdir()
    assert sorted(await remove_template(file)) == sorted(keepers.made)
    assert sorted(path for name in ("a", "b") for path in (place / name).iterdir()) == sorted(
        [*(place / name / "base" for name in ("a", "b")), *map(type(place), others.made)]
    )
    await others.remove()


async def test_template_that_a_killed_process_left_is_removed_with_its_images(tmp_path: Path) -> None:
    place = tmp_path.resolve()
    (place / "base").touch()
    view = DiskView("vda", "t1", (ViewLayer(str(place / "base"), "raw"),), virtual_size=1 << 20)
    keepers = Keepers("template", str(place / "t1"))
    partial = Partial(str(place / "t1"), 4096)
    await keepers.create([view], "t1", synced=False)
    (file,) = keepers.made
    keepers.release()
    with pytest.raises(Busy, match="the layer is needed by"):  # the lock on the directory shows it
        await remove_template(file)
    os.close(partial._lock)  # as if the process was killed
    assert await remove_template(file) == (file,)
    assert list(place.iterdir()) == [place / "base"]


async def test_what_is_neither_a_template_nor_such_an_image_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    for name, said in (("none", "there is no template"), ("notes", "does not show that a layer is needed")):
        with pytest.raises(NotFound, match=said) as caught:
            await remove_template(tmp_path / name)
        assert caught.value.hint


async def test_template_that_was_killed_before_its_first_image_is_removed_by_its_name(tmp_path: Path) -> None:
    place = tmp_path.resolve()
    made = Partial(str(place / "t1"), 4096)
    with pytest.raises(TargetExists, match="is making"):  # the lock on the directory shows it
        await remove_template(place / "t1")
    os.close(made._lock)
    assert await remove_template(place / "t1") == ()
    assert [*place.iterdir()] == []
    with pytest.raises(NotFound, match="there is no template"):
        await remove_template(place / "t1")
