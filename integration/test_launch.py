"""A QEMU that is our child: how it ended is in every error."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import qmpsnap
from integration.machines import CHEAP, blockdev

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-device", "nonsense-pci"), "'nonsense-pci' is not a valid device model name"),
        (("-device", "virtio-blk-pci,drive=none"), "none"),
        (("-nonsense",), "invalid option"),
        (("-blockdev", "qcow2,node-name=a,file.driver=file,file.filename=/missing"), "No such file"),
    ],
)
async def test_launch_with_a_bad_argument_has_qemu_s_words_its_status_and_the_name(qemu, arguments, words):
    with pytest.raises(qmpsnap.ConnectFailed) as caught:
        async with qmpsnap.launch([qemu.system, *CHEAP, *arguments], name="vm1"):
            pass
    assert caught.value.message.startswith("vm1 ")
    assert "ended with status 1: qemu-system-x86_64: " in caught.value.message
    assert words in caught.value.message


async def test_lost_link_of_a_child_says_how_it_ended(qemu, tmp_path):
    disk = qemu.create(tmp_path / "vda.qcow2")
    async with qmpsnap.launch([qemu.system, *CHEAP, *blockdev("vda", disk)], name="vm1") as vm:
        waiting = asyncio.create_task(vm.wait_lost())
        await asyncio.sleep(0)
        os.kill(vm.pid, signal.SIGKILL)
        async with asyncio.timeout(1):
            assert await waiting == "QEMU ended by signal 9 (SIGKILL): it printed nothing"
        with pytest.raises(qmpsnap.LinkLost) as caught:
            await vm.snapshot("n1")
    assert caught.value.message.startswith("lost vm1 with ")
    assert caught.value.message.endswith(": QEMU ended by signal 9 (SIGKILL): it printed nothing")


async def test_machine_without_a_cpu_can_be_worked_on(qemu, tmp_path):
    """`-M none`: no board, no CPU; query-cpus-fast gives an empty list."""
    disk = qemu.create(tmp_path / "vda.qcow2")
    argv = [qemu.system, "-M", "none", "-nodefaults", "-display", "none", "-S"]
    argv += ["-drive", f"if=none,id=d,file={disk}"]
    async with qmpsnap.launch(argv) as vm:
        taken = await vm.snapshot("n1")
        assert (await vm.graph()).chains() == taken.chains
        await vm.checkpoint("c1", mode="internal")
        assert {one.name for one in (await vm.moments()).moments} == {"n1", "c1"}
        await vm.delete("c1")
        active = (await vm.graph()).disks["d"].active.file
        await vm.save(tmp_path / "m")
    argv[-1] = f"if=none,id=d,file={active}"
    async with qmpsnap.launch([*argv, "-incoming", "defer"]) as vm:
        await vm.restore(tmp_path / "m")
        assert (await vm.status()).state in {"paused", "prelaunch"}
