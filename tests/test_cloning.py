from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.cloning import memory_of, refuse_other_memory
from qmpsnap.errors import CommandFailed, MachineDiffers, Unsupported
from qmpsnap.model.start import GuestMemory
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Mapping


MEMORY = GuestMemory(file="/t/memory", size_bytes=64 << 20, share=False)
ANSWERS: dict[str, object] = {
    "/machine memory-backend": "pc.ram",
    "/objects/pc.ram mem-path": "/t/memory",
    "/objects/pc.ram share": False,
    "/objects/pc.ram x-use-canonical-path-for-ramblock-id": False,
}


class Answering:
    """A machine that answers qom-get, and how much memory it has."""

    def __init__(
        self, answers: Mapping[str, object], *, plugged: int = 0, shared: Mapping[str, bool] | None = None
    ) -> None:
        self._answers = answers
        self._memdevs = [{"id": name, "share": share} for name, share in (shared or {}).items()]
        self._memory = {"base-memory": 64 << 20, "plugged-memory": plugged}

    async def status(self) -> None:
        """It has a guest."""

    async def execute(self, command: str, arguments: Mapping[str, str] | None = None) -> object:
        if command == "query-memory-size-summary":
            return self._memory
        if command == "query-memdev":
            return self._memdevs
        assert (command, arguments is None) == ("qom-get", False)
        assert arguments is not None
        asked = f"{arguments['path']} {arguments['property']}"
        if asked not in self._answers:
            raise CommandFailed(
                "no", command=command, arguments={}, qmp_class="GenericError", desc="not found"
            )
        return self._answers[asked]


@each("answers", [ANSWERS, {**ANSWERS, "/machine memory-backend": "/objects/pc.ram"}])
async def test_memory_that_the_launcher_was_given_is_accepted(answers: dict[str, object]) -> None:
    await refuse_other_memory(Answering(answers), MEMORY)  # type: ignore[arg-type]


@each(
    ("changes", "said"),
    [
        ({"/machine memory-backend": ""}, "memory-backend of /machine is '', not 'pc.ram'"),
        ({"/objects/pc.ram mem-path": "/u/memory"}, "mem-path of /objects/pc.ram is '/u/memory'"),
        ({"/objects/pc.ram share": True}, "share of /objects/pc.ram is True, not False"),
        (
            {"/objects/pc.ram x-use-canonical-path-for-ramblock-id": True},
            "x-use-canonical-path-for-ramblock-id of /objects/pc.ram is True, not False",
        ),
    ],
)
async def test_memory_that_is_another_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(MachineDiffers, match=said) as caught:
        await refuse_other_memory(Answering({**ANSWERS, **changes}), MEMORY)  # type: ignore[arg-type]
    assert len(caught.value.differences) == 1


async def test_other_memory_that_is_shared_is_refused() -> None:
    """What is in it would be lost."""
    given = {"pc.ram": True, "erst": False}
    await refuse_other_memory(Answering(ANSWERS, shared=given), MEMORY)  # type: ignore[arg-type]
    with pytest.raises(MachineDiffers, match="'erst' is shared memory") as caught:
        await refuse_other_memory(Answering(ANSWERS, shared={**given, "erst": True}), MEMORY)  # type: ignore[arg-type]
    assert len(caught.value.differences) == 1
    assert "share=off" in caught.value.hint


async def test_memory_with_another_id_and_name_is_looked_for_under_them() -> None:
    memory = GuestMemory(file="/t/memory", size_bytes=64 << 20, share=False, block="/objects/mem")
    answers = {
        "/machine memory-backend": "/objects/mem",
        "/objects/mem mem-path": "/t/memory",
        "/objects/mem share": False,
        "/objects/mem x-use-canonical-path-for-ramblock-id": True,
    }
    await refuse_other_memory(Answering(answers), memory)  # type: ignore[arg-type]
    with pytest.raises(MachineDiffers, match=r"'/objects/mem', not 'pc\.ram'"):
        await refuse_other_memory(Answering(answers), MEMORY)  # type: ignore[arg-type]


async def test_memory_of_a_machine_without_an_object_is_refused() -> None:
    with pytest.raises(MachineDiffers, match="not found"):
        await refuse_other_memory(Answering({}), MEMORY)  # type: ignore[arg-type]


@each("backend", ["/objects/pc.ram", "pc.ram", "/objects/mem"])
async def test_size_of_memory_that_a_clone_can_have_is_returned(backend: str) -> None:
    vm = Answering({"/machine memory-backend": backend})
    assert await memory_of(vm) == 64 << 20  # type: ignore[arg-type]


@each(
    ("backend", "plugged", "said"),
    [
        ("", 0, "which is in the objects of its NUMA nodes"),
        ("/objects/pc.ram", 128 << 20, "134217728 bytes of which are plugged in"),
    ],
)
async def test_memory_that_no_clone_can_have_is_refused(backend: str, plugged: int, said: str) -> None:
    vm = Answering({"/machine memory-backend": backend}, plugged=plugged)
    with pytest.raises(Unsupported, match=said) as caught:
        await memory_of(vm)  # type: ignore[arg-type]
    assert "-m" in caught.value.hint
