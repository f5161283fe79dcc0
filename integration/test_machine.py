"""A machine that is described by `qmpsnap.Machine`: its console, its ports, its end, another one like it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack, nullcontext

import anyio
import pytest

import qmpsnap
from integration.known_images import QEMUS
from integration.machines import SOON
from qmpsnap import launched
from qmpsnap.errors import GuestFailed
from qmpsnap.helper import loaded, source_of
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.machine import guest_machine


def described(qemu, folder, *names, **options):
    """A machine without a guest, each of its disks an image of that name."""
    disks = [qmpsnap.MachineDisk(name, qemu.create(folder / f"{name},1.qcow2")) for name in names]
    more = {"memory_mib": 64, "arguments": ["-S"], **options}
    return qmpsnap.Machine(qemu=qemu.system, disks=disks, **more)


@pytest.fixture
def deep(tmp_path):
    """A directory whose path no socket could have, with a comma and a space in it."""
    folder = tmp_path / ("a, b" * 50)
    folder.mkdir()
    return folder


async def test_guest_boots_with_console_and_port_and_powers_off(deep):
    """Whole boots cost too much to be tried on each QEMU."""
    qemu = QEMUS[0]
    disks = [
        qmpsnap.MachineDisk(f"{bus}-0", qemu.create(deep / f"{bus}.qcow2"), bus=bus)
        for bus in ("virtio", "scsi", "ide")
    ]
    log = deep / "console.log"
    machine = guest_machine(qemu.system, disks)
    async with qmpsnap.launch(machine, console_log=log, name="vm1") as vm:
        with pytest.raises(GuestFailed, match=r"no 'never' on the console within 0\.1 s"):
            await vm.console.wait_for("never", limit=0.1)
        assert "init runs" in await vm.console.wait_for("init runs", limit=60)
        guest = Guest(vm.port(PORT_NAME))
        await guest.wait_ready()
        for disk in disks:
            assert await guest.device(disk.name)
        # 0.4 MB: the guest is not held up, and what is kept has a bound.
        flood = "head -c 400000 /dev/zero | tr '\\0' x > /dev/console; echo the end > /dev/console"
        await guest.run(flood, limit=120)
        await vm.console.wait_for("the end", limit=120)
        assert len(vm.console.tail) <= 64 * 1024
        assert await vm.poweroff(limit=60, ask=guest.poweroff) == "powered-off"
        assert vm.exit_status == 0
        with pytest.raises(qmpsnap.LinkLost, match="ended with status 0"):
            await vm.status()
    assert log.stat().st_size > 400_000


async def test_machine_without_a_guest_quits_and_one_that_hangs_is_killed(qemu, deep, monkeypatch):
    async with qmpsnap.launch(described(qemu, deep, "vda")) as vm:
        assert await vm.poweroff() == "quit"
        assert vm.exit_status == 0
        assert await vm.poweroff() == "powered-off"
    monkeypatch.setattr(launched, "_QUIT_LIMIT", 0.1)
    async with qmpsnap.launch(described(qemu, deep)) as vm:
        os.kill(vm.pid, signal.SIGSTOP)
        assert await vm.poweroff(limit=0.1) == "killed"
        assert await vm.wait_ended() == vm.exit_status == -signal.SIGKILL


async def test_guest_that_does_not_heed_its_power_button_has_its_limit(qemu, tmp_path):
    async with qmpsnap.launch(described(qemu, tmp_path, arguments=())) as vm:
        before = time.monotonic()
        assert await vm.poweroff(limit=0.2) == "quit"
        assert 0.2 <= time.monotonic() - before < SOON


async def test_end_by_sigterm_is_not_taken_for_the_guest_s_where_the_event_comes_late(
    qemu, tmp_path, monkeypatch
):
    monkeypatch.setattr(qmpsnap.LaunchedVM, "events", lambda *_: nullcontext())
    async with qmpsnap.launch(described(qemu, tmp_path, arguments=())) as vm:
        assert await vm.poweroff(limit=0.01) == "quit"


async def test_ten_machines_at_once_have_each_their_own_console_port_and_monitor(qemu, tmp_path):
    async with AsyncExitStack() as stack:

        async def start(number):
            machine = described(
                qemu, tmp_path, f"d{number}", ports=["org.x.0"], rng=True, nics=[qmpsnap.Nic()]
            )
            return await stack.enter_async_context(
                qmpsnap.launch(machine, qmp=tmp_path / f"qmp{number}", name=f"vm{number}")
            )

        machines = [await start(number) for number in range(10)]
        for number, vm in enumerate(machines):
            async with qmpsnap.connect(vm.qmp) as other:
                assert set((await other.graph()).disks) >= {f"d{number}"}
            with anyio.move_on_after(0.01):
                await vm.port("org.x.0").receive()
        assert len({vm.pid for vm in machines}) == 10
        with pytest.raises(qmpsnap.Unsupported, match=r"no port 'x'; its ports: 'org\.x\.0'"):
            vm.port("x")
    assert not list(tmp_path.glob("qmp?"))


async def test_another_one_loads_a_checkpoint_into_memory_that_is_a_file(qemu, tmp_path):
    machine = described(qemu, tmp_path, "vda", "vdb")
    file = tmp_path / "memory"
    memory = qmpsnap.GuestMemory(file=str(file), size_bytes=64 << 20, share=True)
    async with qmpsnap.launch(machine) as vm:
        await vm.checkpoint("c1")
        async with loaded(await source_of(vm, "c1"), vm.launcher, memory=memory) as helper:
            assert (await helper.status()).state == "prelaunch"  # as the first was
            assert file.stat().st_size == 64 << 20


async def test_another_one_of_a_command_line_has_that_file_in_place_of_its_own_memory(qemu, tmp_path):
    """An object of another name than QEMU's own: the memory's name is in the VM state."""
    arguments = ["-S", "-object", "memory-backend-ram,id=m,size=64M", "-machine", "memory-backend=m"]
    argv = described(qemu, tmp_path, "vda", arguments=arguments).argv()
    memory = qmpsnap.GuestMemory(file=str(tmp_path / "memory"), size_bytes=64 << 20, share=True)
    async with qmpsnap.launch(argv) as vm:
        await vm.checkpoint("c1")
        async with loaded(await source_of(vm, "c1"), vm.launcher, memory=memory) as helper:
            assert (await helper.status()).state == "prelaunch"  # as the first was
            assert (tmp_path / "memory").stat().st_size == 64 << 20


async def test_machine_says_what_only_one_qemu_can_have(qemu, tmp_path):
    machine = described(qemu, tmp_path, "vda", nics=[qmpsnap.Nic("tap,ifname=tap7")])
    with pytest.raises(qmpsnap.Unsupported, match="'tap7' belongs to the first QEMU"):
        async with qmpsnap.launch(machine, start=qmpsnap.Start(disks={"vda": f"{tmp_path}/other"})):
            pass


async def test_start_that_is_cancelled_leaves_nothing(qemu, tmp_path):
    for limit in (0.001, 0.01, 0.05):
        with anyio.move_on_after(limit):
            async with qmpsnap.launch(described(qemu, tmp_path), qmp=tmp_path / "qmp"):
                await asyncio.sleep(1)
        assert not (tmp_path / "qmp").exists()
