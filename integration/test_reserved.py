"""Disk space for a background checkpoint: for what the memory holds, also when that grows until the pause."""

from __future__ import annotations

import contextlib
import itertools
import socket
from contextlib import asynccontextmanager

import pytest

import qmpsnap
from integration.known_images import MIB
from integration.machines import blockdev, listing
from integration.states import fill, note, opened, refuses, settings, status
from qmpsnap.errors import Changed, InvalidTarget
from qmpsnap.plan.intent import Checkpoint

AT, USED = 16 * MIB, 40 * MIB
RAM = ("-accel", "tcg", "-m", "256")  # with room for all of it and more, 417 MiB would be needed
_numbers = itertools.count()


class Memory:
    """The guest's memory, which the test reads and writes as a device would, by QEMU's qtest."""

    def __init__(self, folder):
        self._path = f"{folder}/qtest{next(_numbers)}"
        self.arguments = ("-qtest", f"unix:{self._path},server=on,wait=off", "-qtest-log", "none")

    def write(self, pattern, offset, length):
        self._tell(f"memset {offset:#x} {length:#x} {pattern:#x}")

    def holds(self, pattern, offset, length):
        return set(bytes.fromhex(self._tell(f"read {offset:#x} {length:#x}").split("0x")[1])) == {pattern}

    def _tell(self, line):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock, sock.makefile("rw") as file:
            sock.settimeout(30)
            sock.connect(self._path)
            file.write(f"{line}\n")
            file.flush()
            answer = file.readline()
        assert answer.startswith("OK"), answer
        return answer


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path)


@pytest.fixture
def using(images, machine, memory):
    """A running machine whose guest uses little of its memory."""

    @contextlib.contextmanager
    def start(*arguments):
        active = images("base").active
        with machine(*blockdev("vda", active), extra=(*RAM, *memory.arguments, *arguments)) as running:
            running.qmp("cont")
            yield running

    return start


def at(**acts):
    """Hooks that act right before the step with that command."""

    def before(step):
        acts.get(step.command, lambda: None)()

    return qmpsnap.Hooks(before=before)


def reservations(plan):
    return [step.command for step in plan.steps].count("reserve-memory")


async def test_background_checkpoint_fits_where_all_of_the_memory_would_not_and_reverts(
    qemu, using, machine, memory, small, tmp_path
):
    place = small("150m", "place")
    with using() as running:
        memory.write(0xA1, AT, USED)
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "background", f"{place}/memory"))
            assert reservations(plan) == (2 if qemu.short == "7.2" else 0)
            await vm.run(plan, at(stop=lambda: memory.write(0xA2, AT + USED, MIB)))
            assert USED + MIB < note(place / "memory").stream_bytes < 80 * MIB
            assert (place / "memory").stat().st_blocks * 512 < 80 * MIB
            again = Memory(tmp_path)

            @asynccontextmanager
            async def started(start):
                extra = (*RAM, *again.arguments, *start.arguments)
                with machine(*blockdev("vda", start.disks["vda"]), extra=extra) as other:
                    async with other.connect() as new:
                        yield new

            async with vm.reverted("c1", started):
                assert again.holds(0xA1, AT, USED)
                assert again.holds(0xA2, AT + USED, MIB)


async def test_memory_that_the_guest_uses_before_the_pause_is_reserved_in_it(qemu, using, memory, small):
    place = small("150m", "place")
    with using() as running:
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "background", f"{place}/memory"))
            if qemu.short != "7.2":
                assert reservations(plan) == 0  # a failure does no harm there
                return
            await vm.run(
                plan,
                at(
                    stop=lambda: memory.write(0xA1, AT, 2 * USED),
                    transaction=lambda: fill(place, 0),  # so that QEMU gets nothing that is not reserved
                ),
            )
            assert note(place / "memory").stream_bytes > 2 * USED
            assert (status(running), opened(running)) == ("running", [])


async def test_memory_for_which_there_is_no_room_in_the_pause_lets_the_guest_run_on(
    qemu, using, memory, small
):
    place = small("150m", "place")
    with using() as running:
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", "background", f"{place}/memory"))
            if qemu.short != "7.2":
                assert reservations(plan) == 0
                return
            before = listing(running.folder), settings(running), status(running), running.roots()
            filled = []

            def use():
                filled.append(fill(place, MIB))
                memory.write(0xA1, AT, USED)

            with pytest.raises(InvalidTarget, match="cannot reserve space") as caught:
                await vm.run(plan, at(stop=use))
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            filled[0].unlink()
            now = listing(running.folder), settings(running), status(running), running.roots()
            assert (now, opened(running), listing(place)) == (before, [], [])
            assert await vm.jobs.interrupted() == ()
            await vm.checkpoint("c1", mode="background", memory=place / "memory")
            assert note(place / "memory").stream_bytes > USED


@pytest.mark.parametrize("kind", ["memory-backend-memfd", "memory-backend-ram"])
async def test_memory_that_may_be_shared_needs_room_for_all_of_it(using, small, kind):
    """Of what another process writes into it the kernel says nothing."""
    place = small("250m", "place")
    with using("-object", f"{kind},id=ram,size=256M,share=on", "-M", "memory-backend=ram") as running:
        async with running.connect() as vm:
            for mode in ("background", "stop"):
                intent = Checkpoint("c1", mode, f"{place}/memory")
                await refuses(running, vm, intent, InvalidTarget, "bytes free")
