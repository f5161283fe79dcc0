from __future__ import annotations

import json
from typing import Any

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.template import Template
from tests.model.test_template import KEEPER, RECORD


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
