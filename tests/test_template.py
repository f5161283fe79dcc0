from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from qmpsnap.errors import BadArgument, Changed, CommandFailed, Interrupted, InvalidTarget, MachineDiffers
from qmpsnap.model.start import GuestMemory
from qmpsnap.template import Template, refuse_other_memory, take
from tests.each import each
from tests.model.test_template import KEEPER, RECORD
from tests.run.operations import vm_of
from tests.run.states import fake_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpsnap.model.step import Step
    from qmpsnap.testing.fake import FakeTarget

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


def cancelling_at(command: str, fake: FakeTarget, scope: anyio.CancelScope) -> None:
    """Cancel the scope before the first step with this command."""

    def cancels(step: Step) -> None:
        if step.command == command:
            scope.cancel()

    fake.before = cancels


BACKGROUND = [
    "create-overlay",
    "stop",
    "transaction",
    "migrate",
    "await-migration",
    "seal-memory",
    "keep-moment",
]
IN_PLACE = ["create-store", "snapshot-save", "transaction", "seal-store"]


@each(
    ("command", "running", "old"),
    [
        *((command, True, old) for command in BACKGROUND for old in (True, False)),
        *((command, False, True) for command in IN_PLACE),
    ],
)
async def test_checkpoint_whose_taking_is_cancelled_is_deleted_again(
    command: str, *, running: bool, old: bool
) -> None:
    fake = fake_of(running=running, old=old)
    vm = vm_of(fake)
    files, chains = fake.files.names, (await vm.graph()).chains()
    with anyio.CancelScope() as scope:
        cancelling_at(command, fake, scope)
        await take(vm, "t1")
    assert scope.cancelled_caught
    assert ((await vm.graph()).chains(), fake.files.names) == (chains, files)
    assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
    assert (await vm.status()).running is running


async def test_checkpoint_that_cannot_be_deleted_after_a_cancellation_is_named() -> None:
    fake = fake_of(old=True)
    vm = vm_of(fake)
    refused = CommandFailed("no", command="block-commit", arguments={}, qmp_class="GenericError", desc="no")
    fake.fail("block-commit", refused)
    scope = anyio.CancelScope()
    cancelling_at("seal-memory", fake, scope)
    with pytest.raises(Interrupted, match="the checkpoint 't1', which had been taken") as caught, scope:
        await take(vm, "t1")
    assert (caught.value.changed, caught.value.hint) == (Changed.YES, "qmpsnap delete t1")
    assert caught.value.left == ("the checkpoint 't1': qmpsnap delete t1",)
    assert [moment.name for moment in (await vm.moments()).moments] == ["t1"]
    await vm.delete("t1")


async def test_checkpoint_that_fails_after_its_overlays_were_put_on_leaves_none() -> None:
    fake = fake_of()
    vm = vm_of(fake)
    chains = (await vm.graph()).chains()
    fake.fail("seal-memory", InvalidTarget("no room", file="/images/base.t1.memory"))
    with pytest.raises(InvalidTarget) as caught:
        await take(vm, "t1")
    assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
    assert (await vm.graph()).chains() == chains
