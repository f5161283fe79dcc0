"""What each operation does in each run state that a machine can be brought into, and what it is afterwards.

The same table is in docs/explanation/qemu.md. A guest that sleeps can be woken after each of them.
"""

from __future__ import annotations

import asyncio

import pytest

from integration.cli import Cli
from integration.known_images import KIB, QEMUS
from integration.machines import blockdev, traced, wait_for
from integration.states import status
from integration.test_checkpoint_guest import booted
from integration.test_on_a_guest import until_status
from qmpsnap.errors import Changed, Unsupported
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Revert,
    Save,
    Snapshot,
)
from qmpsnap.testing.guest import open_guest

WRITE = (0xA1, 0, 64 * KIB)
SLEEP, SOFT_OFF = 0x2400, 0x2000  # what ACPI's PM1a_CNT takes: SLP_TYP 1 and 0, with SLP_EN
EXTRA = ("-no-shutdown", "-device", "pvpanic", "-action", "panic=pause")


def power(running, value, state):
    """Do what a guest does to sleep or to power off; its firmware has to have come so far."""

    def there():
        running.qmp("human-monitor-command", {"command-line": f"o /h 0x604 {value:#x}"})
        return status(running) == state

    wait_for(there, state)


def enter(running, state, tmp_path):
    """Bring a machine that runs into a run state."""
    match state:
        case "prelaunch":
            running.qmp("stop")
            running.qmp("system_reset")
        case "paused":
            running.qmp("stop")
        case "suspended":
            power(running, SLEEP, state)
        case "shutdown":
            power(running, SOFT_OFF, state)
        case "guest-panicked":
            running.qmp.hmp("o /b 0x505 1")
        case "restore-vm":
            running.qmp("human-monitor-command", {"command-line": "loadvm nothing"})
        case "postmigrate":
            running.qmp("migrate", uri=f"exec:cat > {tmp_path / 'gone'}")
    wait_for(lambda: status(running) == state, state)


NO, SAVED = "refused", "postmigrate"
OPERATIONS = {
    "snapshot": lambda _: Snapshot("n1"),
    "snapshot --internal": lambda _: Snapshot("i1", inside=True),
    "commit": lambda _: Commit("vda", "before", "base"),
    "revert, disks": lambda _: Revert("before"),
    "checkpoint stop": lambda _: Checkpoint("c1", "stop"),
    "checkpoint background": lambda _: Checkpoint("c2", "background"),
    "checkpoint in-place": lambda _: Checkpoint("c3", "in-place"),
    "checkpoint internal": lambda _: Checkpoint("c4", "internal"),
    "revert, in-place": lambda _: Revert("kept"),
    "save": lambda place: Save(str(place / "saved")),
}

STANDS = ("snapshot", "snapshot --internal", "commit", "checkpoint in-place", "checkpoint internal")
STREAMS = ("checkpoint stop", "checkpoint background", "save")
DISKS, MEMORY = "revert, disks", "revert, in-place"

# What becomes of each in a run state. The memory of a guest that stands can be written to a file once.
TABLE = {
    "running": dict.fromkeys(OPERATIONS, "running") | {"save": SAVED},
    "paused": dict.fromkeys(STANDS, "paused")
    | dict.fromkeys(STREAMS, SAVED)
    | {DISKS: "prelaunch", MEMORY: "paused"},
    "prelaunch": dict.fromkeys(STANDS, "prelaunch")
    | dict.fromkeys(STREAMS, SAVED)
    | {DISKS: "prelaunch", MEMORY: "prelaunch"},
    "guest-panicked": dict.fromkeys(STANDS, "guest-panicked")
    | dict.fromkeys(STREAMS, SAVED)
    | {DISKS: "prelaunch", MEMORY: "guest-panicked"},
    "shutdown": dict.fromkeys(STANDS, "shutdown")
    | dict.fromkeys(STREAMS, SAVED)
    | {DISKS: "prelaunch", MEMORY: NO},
    "suspended": dict.fromkeys(OPERATIONS, NO) | dict.fromkeys(STANDS[:3], "suspended") | {DISKS: "running"},
    "restore-vm": dict.fromkeys(OPERATIONS, NO)
    | dict.fromkeys(STANDS[:3], "restore-vm")
    | {DISKS: "prelaunch", MEMORY: "running"},
    "postmigrate": dict.fromkeys(OPERATIONS, NO) | {"checkpoint in-place": SAVED},
}


async def done(machine, images, place, state, operation):
    """Do it on a machine of its own; return what becomes of that."""
    place.mkdir()
    made = images("base", folder=place)
    with machine(*blockdev("vda", made.active), *EXTRA) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        async with running.connect() as vm:
            await vm.snapshot("before")
            await vm.checkpoint("kept", mode="in-place")
            enter(running, state, place)
            intent = OPERATIONS[operation](place)
            if TABLE[state][operation] == NO:
                with traced(vm) as sent, pytest.raises(Unsupported) as caught:
                    await vm.run(await vm.plan(intent))
                assert (caught.value.changed, sent, status(running)) == (Changed.NO, [], state)
                assert caught.value.hint
                return NO
            await vm.run(await vm.plan(intent))
            if TABLE[state][operation] == "prelaunch":  # by a reset, which QEMU does after its reply
                wait_for(lambda: status(running) == "prelaunch", "the reset")
            after = status(running)
            if state == "suspended" and after == "suspended":
                running.qmp("system_wakeup")
                wait_for(lambda: status(running) == "running", "the guest to wake")
            return after


# All three QEMUs were found to agree; those whose words for a guest that sleeps differ are asked for that.
EVERY = [(QEMUS[-1], state) for state in TABLE] + [(qemu, "suspended") for qemu in QEMUS[:-1]]


@pytest.mark.parametrize(("qemu", "state"), EVERY, ids=[f"{one.short}-{state}" for one, state in EVERY])
async def test_each_operation_in_a_run_state(machine, images, tmp_path, state):
    found = {
        operation: await done(machine, images, tmp_path / str(number), state, operation)
        for number, operation in enumerate(OPERATIONS)
    }
    assert found == TABLE[state]


def test_a_machine_that_is_not_created_yet_is_created_by_the_printed_command(machine):
    with machine(extra=("-preconfig",)) as running:
        command = Cli(running)
        said = command("status").out.splitlines()
        assert (said[0], said[-1]) == ("preconfig", "  next: qmpsnap qmp x-exit-preconfig")
        assert [command(verb).code for verb in ("jobs", "chain", "doctor")] == [0, 0, 0]
        assert command("cont").code == 3
        assert command(*said[-1].split()[2:]).code == 0
        assert command("status").out.splitlines()[0] == status(running) == "prelaunch"


async def test_a_real_guest_that_sleeps_wakes_after_a_snapshot(qemu, tmp_path):
    file = qemu.create(tmp_path / "vda.qcow2")
    async with (
        booted(qemu, tmp_path, {"vda": file}) as (vm, client),
        open_guest(tmp_path / "first.port") as guest,
    ):
        # On a busy host the guest sleeps before it has answered; then it answers when it is awake.
        answer = asyncio.create_task(
            guest.run("(usleep 200000; echo mem > /sys/power/state) > /dev/null 2>&1 &")
        )
        await until_status(client, "suspended")
        await vm.snapshot("n1")
        for mode in ("stop", "in-place"):
            with pytest.raises(Unsupported, match="the guest is suspended") as caught:
                await vm.checkpoint("c1", mode=mode)
            assert caught.value.hint == "wake it first: qmpsnap qmp system_wakeup"
        assert (await client.execute("query-status"))["status"] == "suspended"
        await client.execute("system_wakeup")
        await until_status(client, "running")
        await answer
        assert await guest.run("echo awake") == "awake"
