"""What a load that goes through a FIFO raises when it fails."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Changed, InvalidTarget, LinkLost, MigrationFailed
from qmpsnap.helper import expendable, loading
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.start import GuestMemory
from qmpsnap.plan.intent import Load
from qmpsnap.run.disk import in_thread
from qmpsnap.run.fifo import opened
from qmpsnap.run.safe_open import open_fifo
from tests.model.test_ram_stream import BEGIN, PART, SIZE, A, page

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = Fingerprint("pc", 1 << 28, ("qemu64",), {"vda": "virtio-blk"}, {"vda": 1 << 30}, "10.0.0")


class Failing:
    """A QEMU that reads what comes through the FIFO, and cannot load it."""

    pid = None

    def __init__(self) -> None:
        self.error = MigrationFailed("cannot load it", error="load failed")

    async def do(self, load: Load) -> None:
        def read() -> None:
            descriptor = open_fifo(load.fifo)  # also if all was passed on already
            os.set_blocking(descriptor, True)
            with os.fdopen(descriptor, "rb") as fifo:
                fifo.read()

        await in_thread(read)
        raise self.error


async def fail(tmp_path: Path, stream: bytes, memory: GuestMemory | None) -> tuple[Exception, Exception]:
    """Load the stream; return what was raised, and what the QEMU said."""
    file, vm = tmp_path / "c1.memory", Failing()
    file.touch(0o600)
    file.write_bytes(stream)
    load = Load(
        "c1", KeptState("stop", str(file), "", running=True, fingerprint=MACHINE), fifo=f"{tmp_path}/fifo"
    )
    async with loading(vm, load, memory=memory) as go_on:  # type: ignore[arg-type]
        with opened(str(file)) as descriptor, pytest.raises((MigrationFailed, InvalidTarget)) as caught:
            await go_on(descriptor)
    return caught.value, vm.error


async def test_load_that_fails_raises_what_qemu_said(tmp_path: Path) -> None:
    error, said = await fail(tmp_path, b"stream", None)
    assert error is said
    assert error.__cause__ is None


async def test_load_whose_memory_cannot_be_written_names_the_memory(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.touch(0o600)
    os.truncate(memory, SIZE)
    stream = BEGIN + PART + page(0, A, "pc.ram") + bytes(7) + b"\x80" + bytes(100)
    error, said = await fail(tmp_path, stream, GuestMemory(file=str(memory), size_bytes=SIZE, share=True))
    assert isinstance(error, InvalidTarget)
    assert (error.file, error.__cause__) == (str(memory), said)


async def test_qemu_of_which_nothing_is_kept_changes_nothing_by_its_end(tmp_path: Path) -> None:
    async def work() -> None:
        raise LinkLost("lost qemu", hint="reconnect")

    with pytest.raises(LinkLost) as caught:
        await expendable(Failing(), work())  # type: ignore[arg-type]
    assert caught.value.changed is Changed.NO
    assert caught.value.hint.startswith("it is the QEMU that the launcher has started")
