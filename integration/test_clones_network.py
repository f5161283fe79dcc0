"""Two clones of one template on one network reach each other, each under an address of its own."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

import pytest

import qmpsnap
from qmpsnap import MachineDisk
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.machine import guest_machine
from qmpsnap.testing.wake import wake

pytestmark = pytest.mark.one_qemu


async def set_mac(clone, number):
    await wake(Guest(clone.port(PORT_NAME)), macs={"eth0": f"52:54:00:00:00:0{number}"})


async def test_two_clones_on_one_network_reach_each_other_under_macs_of_their_own(qemu, tmp_path):
    disk = MachineDisk(name="vda", file=qemu.create(tmp_path / "vda.qcow2", size="16M"))
    port = 20000 + os.getpid() % 10000
    network = f"socket,id=n,mcast=230.0.0.1:{port},localaddr=127.0.0.1"
    machine = replace(
        guest_machine(qemu.system, [disk], memory_mib=128),
        arguments=("-netdev", network, "-device", "virtio-net-pci,netdev=n"),
    )
    async with qmpsnap.launch(machine) as vm:
        await Guest(vm.port(PORT_NAME), vm=vm).wait_ready()
        template = await vm.freeze_template(tmp_path / "template")
    async with (
        template.clone(wake=partial(set_mac, number=1)) as first,
        template.clone(wake=partial(set_mac, number=2)) as second,
    ):
        guests = [Guest(clone.port(PORT_NAME), vm=clone) for clone in (first, second)]
        for number, guest in enumerate(guests, start=1):
            await guest.run(f"ip addr add 10.0.0.{number}/24 dev eth0; ip link set eth0 up")
        assert [await guest.run("cat /sys/class/net/eth0/address") for guest in guests] == [
            "52:54:00:00:00:01",
            "52:54:00:00:00:02",
        ]
        await guests[0].run("tries=10; until ping -c 1 -W 2 10.0.0.2; do [ $((tries -= 1)) -ge 0 ]; done")
        assert "52:54:00:00:00:02" in await guests[0].run("grep 10.0.0.2 /proc/net/arp")
