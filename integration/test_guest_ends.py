"""A guest that panics, reboots, powers off or is killed in mid-command ends the command, which says why.

Each command has 600 s, which is more than a test may take here.
"""

from __future__ import annotations

import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import anyio.to_thread
import pytest

import qmpsnap
from qmpsnap.errors import GuestFailed
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.machine import guest_machine

CRASH = "echo c > /proc/sysrq-trigger"
CRASHED = "Kernel panic - not syncing: sysrq triggered crash"


@asynccontextmanager
async def booted(qemu, *arguments):
    machine = replace(guest_machine(qemu.system, memory_mib=128), arguments=arguments)
    async with qmpsnap.launch(machine) as vm:
        guest = Guest(vm.port(PORT_NAME), vm=vm, console=lambda: vm.console.tail)
        await guest.wait_ready()
        yield vm, guest


async def failure(guest, script):
    with pytest.raises(GuestFailed) as failed:
        await guest.run(f"{script}; sleep 600", limit=600)
    assert failed.value.status is None
    return failed.value


async def panic_when_it_runs(vm):
    """Write to the port of pvpanic, as a kernel does that has a driver for it."""
    await vm.console.wait_for("now", limit=60)
    await vm.execute("human-monitor-command", {"command-line": "o /b 0x505 1"})


async def test_command_ends_when_its_shell_is_killed_or_the_kernel_tells_qemu_of_its_panic(qemu):
    arguments = ("-device", "pvpanic", "-action", "panic=pause")
    async with booted(qemu, *arguments) as (vm, guest), anyio.create_task_group() as tasks:
        killed = await failure(guest, "kill -9 $(ps | grep '[b]in/agent' | awk '{print $1}')")
        assert killed.message.startswith("the guest's agent was killed, and has started again, during ")
        assert await guest.run("echo again") == "again"

        tasks.start_soon(panic_when_it_runs, vm)
        panicked = await failure(guest, "echo now > /dev/ttyS0")
        assert panicked.message.startswith(
            "the guest has panicked during 'echo now > /dev/ttyS0; sleep 600'; "
        )
        assert panicked.output.endswith("\nnow")


async def test_command_ends_with_a_kernel_that_halts_and_with_its_qemu(qemu):
    async with booted(qemu) as (vm, guest), anyio.create_task_group() as tasks:
        panicked = await failure(guest, CRASH)
        assert panicked.message.startswith(
            f"the guest has panicked during '{CRASH}; sleep 600'; the console's"
        )
        reason, *_, end = panicked.output.splitlines()
        assert (CRASHED in reason, f"---[ end {CRASHED} ]---" in end) == (True, True)

        tasks.start_soon(anyio.to_thread.run_sync, os.kill, vm.pid, signal.SIGKILL)
        ended = await failure(guest, "true")
        assert "ended by signal 9 (SIGKILL)" in ended.message


@pytest.mark.one_qemu
@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("reboot -f", "was reset"),
        ("poweroff -f", "has shut down"),
        (f"echo 1 > /proc/sys/kernel/panic; {CRASH}", "has panicked"),
    ],
)
async def test_command_ends_with_its_guest(qemu, script, how):
    async with booted(qemu) as (_, guest):
        ended = await failure(guest, script)
        assert ended.message.startswith(
            f"the guest {how} during '{script}; sleep 600'; the console's last lines"
        )
