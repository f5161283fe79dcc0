from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import BadArgument, CommandFailed, MachineDiffers
from qmpsnap.model.start import GuestMemory
from qmpsnap.template import Template, refuse_other_memory
from tests.each import each
from tests.model.test_template import KEEPER, RECORD

if TYPE_CHECKING:
    from collections.abc import Mapping


MEMORY = GuestMemory(file="/t/memory", size_bytes=64 << 20, share=False)
ANSWERS: dict[str, object] = {
    "/machine memory-backend": "pc.ram",
    "/objects/pc.ram mem-path": "/t/memory",
    "/objects/pc.ram share": False,
}


class Answering:
    """A machine that answers qom-get alone."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        self._answers = answers

    async def execute(self, command: str, arguments: Mapping[str, str]) -> object:
        assert command == "qom-get"
        asked = f"{arguments['path']} {arguments['property']}"
        if asked not in self._answers:
            raise CommandFailed(
                "no", command=command, arguments={}, qmp_class="GenericError", desc="not found"
            )
        return self._answers[asked]


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


@each("answers", [ANSWERS, {**ANSWERS, "/machine memory-backend": "/objects/pc.ram"}])
async def test_memory_that_the_launcher_was_given_is_accepted(answers: dict[str, object]) -> None:
    await refuse_other_memory(Answering(answers), MEMORY)  # type: ignore[arg-type]


@each(
    ("changes", "said"),
    [
        ({"/machine memory-backend": ""}, "memory-backend of /machine is '', not 'pc.ram'"),
        ({"/objects/pc.ram mem-path": "/u/memory"}, "mem-path of /objects/pc.ram is '/u/memory'"),
        ({"/objects/pc.ram share": True}, "share of /objects/pc.ram is True, not False"),
    ],
)
async def test_memory_that_is_another_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(MachineDiffers, match=said) as caught:
        await refuse_other_memory(Answering({**ANSWERS, **changes}), MEMORY)  # type: ignore[arg-type]
    assert len(caught.value.differences) == 1


async def test_memory_of_a_machine_without_an_object_is_refused() -> None:
    with pytest.raises(MachineDiffers, match="not found"):
        await refuse_other_memory(Answering({}), MEMORY)  # type: ignore[arg-type]
