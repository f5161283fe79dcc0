"""A machine that several tests use, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qmpsnap.errors import ConnectFailed, GuestFailed, InvalidTarget, QmpsnapError, Unsupported
from qmpsnap.testing.server import Return, Wait, serve
from qmpsnap.testing.shared.machine import SharedMachine
from tests.each import each

_EMPTY = ("query-block", "query-named-block-nodes", "query-blockstats", "query-block-jobs", "query-jobs")


class Starts:
    """A launcher, with the servers that it has started as QEMUs."""

    def __init__(self):
        self.qemus = []

    @asynccontextmanager
    async def __call__(self, wanted):
        async with serve(wanted.monitors[0]) as qemu:
            for command in _EMPTY:
                qemu.answer(command, Return([]))
            qemu.answer("query-migrate", Return({}))
            qemu.answer("query-status", Return({"status": "running", "running": True}))
            self.qemus.append(qemu)
            yield

    def hang(self):
        self.qemus[-1].answer("query-status", Wait(asyncio.Event()))


async def ready(*_):
    pass


async def test_machine_whose_qemu_hangs_is_booted_anew_after_the_limit_of_a_boot(tmp_path):
    start = Starts()
    machine = SharedMachine(start, [], tmp_path, ready=ready, reset="none", boot_limit=1.0)
    async with machine:
        await machine.begin(test="first")
        start.hang()
        await machine.begin(test="second")
    assert len(start.qemus) == 2
    assert machine.account.again == ["first: QEMU was not reset in 1 s"]


async def test_qemu_that_hangs_while_it_waits_for_a_test_is_replaced(tmp_path):
    start = Starts()
    machine = SharedMachine(start, [], tmp_path, ready=ready, reset="none", boot_limit=1.0)
    async with machine:
        await machine.prepare()
        await machine.begin(test="first")
        assert len(start.qemus) == 1
        await machine.prepare()
        await machine.begin(test="second")
        assert (len(start.qemus), len(machine.account.resets)) == (1, 1)
        await machine.prepare()
        start.hang()
        await machine.begin(test="third")
    assert len(start.qemus) == 2
    assert machine.account.again == ["second: QEMU was not reset in 1 s"]


async def test_files_of_a_qemu_are_removed_before_the_next_one_boots(tmp_path):
    machine = SharedMachine(Starts(), [], tmp_path, ready=ready, reset="boot")
    async with machine:
        for number in (1, 2, 3):
            booted = await machine.begin(test=str(number))
            (booted.directory / "filler").touch()
            assert [path.name for path in tmp_path.iterdir()] == [str(number)]


async def test_qemu_that_does_not_start_is_not_started_for_every_reset(tmp_path):
    starts = []

    @asynccontextmanager
    async def start(wanted):
        starts.append(wanted)
        raise ConnectFailed("QEMU ended with status 1")
        yield

    async with SharedMachine(start, [], tmp_path, ready=ready) as machine:
        for _ in range(2):
            with pytest.raises(QmpsnapError, match="QEMU ended with status 1"):
                await machine.begin()
    assert (len(starts), machine.account.reset) == (1, "")


async def test_machine_that_has_booted_before_is_given_up_only_after_two_failures_in_a_row(tmp_path):
    works, fails, tries = Starts(), [False, True, False, True, True, False], []

    @asynccontextmanager
    async def start(wanted):
        tries.append(wanted)
        if fails.pop(0):
            raise ConnectFailed("the port is in use")
        async with works(wanted):
            yield

    said = []
    async with SharedMachine(start, [], tmp_path, ready=ready, reset="boot") as machine:
        for _ in range(6):
            try:
                await machine.begin()
                said.append("")
            except QmpsnapError as error:
                said.append(error.message)
    in_use, short = "the port is in use", "the machine could not be booted before: the port is in use"
    assert said == ["", in_use, "", in_use, in_use, short]
    assert len(tries) == 5


async def test_machine_boots_when_the_disk_is_no_longer_full(tmp_path):
    works, is_full = Starts(), True

    @asynccontextmanager
    async def start(wanted):
        if is_full:
            raise InvalidTarget("no space left", file="/f")
        async with works(wanted):
            yield

    async with SharedMachine(start, [], tmp_path, ready=ready, reset="boot") as machine:
        for _ in range(2):
            with pytest.raises(InvalidTarget, match="no space left"):
                await machine.begin()
        is_full = False
        assert (await machine.begin()).used


async def test_machine_that_cannot_be_prepared_says_so_to_a_test_once_and_then_in_short(tmp_path):
    async def never(*_):
        raise GuestFailed("the guest has panicked", script="")

    said = []
    machine = SharedMachine(Starts(), [], tmp_path, ready=never, reset="boot")
    async with machine:
        for call in (machine.prepare, machine.begin, machine.begin):
            with pytest.raises(GuestFailed) as caught:
                await call()
            said.append(str(caught.value))
    long = "the guest has panicked\nits console is not known: give QEMU -serial file:console.log"
    short = "the machine could not be booted before: the guest has panicked"
    assert said == [long, long, short]


LATE = "give it more time (--qmpsnap-boot-limit), or run it by itself to see where it stops"


@each(
    ("console", "end", "hint"),
    [
        (None, "its console is not known: give QEMU -serial file:console.log", LATE),
        (
            "",
            "it wrote nothing to its console",
            f"under KVM, try it without (--qmpsnap-accel=tcg); else {LATE}",
        ),
        ("one\ntwo\n", "the end of its console:\n  one\n  two", LATE),
    ],
)
async def test_guest_that_is_not_ready_in_time_is_told_with_its_console_and_what_to_do(
    tmp_path, console, end, hint
):
    @asynccontextmanager
    async def start(wanted):
        if console is not None:
            Path(wanted.directory, "console.log").write_text(console)
        async with serve(wanted.monitors[0]) as qemu:
            for command in _EMPTY:
                qemu.answer(command, Return([]))
            yield

    async def never(*_):
        await asyncio.Event().wait()

    directory = tmp_path / str(len([*tmp_path.iterdir()]))  # another one for each case
    directory.mkdir()
    machine = SharedMachine(start, [], directory, ready=never, reset="boot", boot_limit=0.2)
    async with machine:
        with pytest.raises(GuestFailed) as caught:
            await machine.begin()
    assert caught.value.message == f"the guest was not ready after 0.2 s\n{end}"
    assert caught.value.hint == hint


@pytest.mark.parametrize("mode", ["clone", "disks"])
async def test_machine_without_a_disk_is_not_reset_by_its_disks_or_a_clone(tmp_path, mode):
    start = Starts()
    async with SharedMachine(start, [], tmp_path, ready=ready, reset=mode) as machine:
        with pytest.raises(Unsupported, match="the machine has no disk that it can write to") as refused:
            await machine.begin(test="first")
    assert (refused.value.feature, refused.value.hint) == (
        f"a reset of the mode {mode}", 'its memory is all that there is to reset: reset="memory"',
    )  # fmt: skip
