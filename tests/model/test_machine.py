from __future__ import annotations

from typing import Any

import pytest
from msgspec import to_builtins
from msgspec.structs import replace

from qmpsnap.model.document import take
from qmpsnap.model.machine import Device, Fingerprint, Status
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each

WAS = Fingerprint(
    machine="pc-q35-7.2-machine",
    memory=256 << 20,
    cpus=("a-cpu", "a-cpu"),
    devices={"vda": "virtio-blk-pci", "/device[0]": "isa-serial"},
    disks={"vda": 64},
    qemu="7.2.22",
    ram="pc.ram",
)


@each(
    ("change", "said"),
    [
        (
            {"machine": "pc-i440fx-7.2-machine"},
            ["the machine is pc-i440fx-7.2-machine, not pc-q35-7.2-machine"],
        ),
        ({"memory": 7}, ["it has 7 bytes of memory, not 268435456"]),
        ({"cpus": ("a-cpu",)}, ["it has 1 CPU (a-cpu), not 2 CPUs (a-cpu)"]),
        ({"cpus": ("a-cpu", "b-cpu")}, ["it has 2 CPUs (a-cpu, b-cpu), not 2 CPUs (a-cpu)"]),
        ({"devices": {"vda": "virtio-blk-pci"}}, ["it lacks the device /device[0] (isa-serial)"]),
        ({"devices": {**WAS.devices, "n0": "e1000"}}, ["it has another device, n0 (e1000)"]),
        ({"devices": {**WAS.devices, "vda": "e1000"}}, ["its device vda is e1000, not virtio-blk-pci"]),
        ({"disks": {}}, ["it lacks the disk vda (64)"]),
        ({"disks": {"vda": 64, "vdb": 1}}, ["it has another disk, vdb (1)"]),
        ({"disks": {"vda": 65}}, ["its disk vda is 65, not 64"]),
        (
            {"memory": 7, "disks": {}},
            ["it has 7 bytes of memory, not 268435456", "it lacks the disk vda (64)"],
        ),
        ({"ram": "/objects/pc.ram"}, ["its memory is called '/objects/pc.ram', not 'pc.ram'"]),
        ({"ram": ""}, []),  # as in a record of before
        ({"qemu": "11.1.0"}, []),
        ({}, []),
    ],
)
def test_differences_names_each_thing_that_is_another(change: dict[str, object], said: list[str]) -> None:
    assert list(WAS.differences(replace(WAS, **change))) == said


def test_fingerprint_is_read_as_it_was_written() -> None:
    assert take(Fingerprint, to_builtins(WAS)) == WAS


@each("key", list(to_builtins(WAS)))
@each("value", [None, 7.5, {"a": [1]}, float("inf"), ["a", 1], True])
def test_fingerprint_of_a_wrong_shape_is_refused(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        take(Fingerprint, {**to_builtins(WAS), key: value})


@each("body", [None, 7, [], "x"])
def test_fingerprint_that_is_none_is_refused(body: Any) -> None:
    with pytest.raises(ValueError, match="Expected `object`"):
        take(Fingerprint, body)


def test_fingerprint_cannot_be_changed_through_what_it_was_made_of() -> None:
    disks = {"vda": 1}
    made = replace(WAS, disks=disks)
    disks["vda"] = 2
    assert made.disks == {"vda": 1}


@each(
    ("migration", "is_on"),
    [("none", False), ("completed", False), ("failed", False), ("cancelled", False)]
    + [(status, True) for status in ("setup", "active", "cancelling", "failing", "device", "wait-unplug")],
)
def test_machine_is_migrating_until_the_migration_has_ended(migration: str, is_on: bool) -> None:
    assert a_machine(graph(), migration=migration).migrating is is_on


def test_machine_is_migrating_until_it_has_left_the_run_state_in_which_a_migration_ends() -> None:
    assert Status("finish-migrate", running=False, migration="completed").migrating
    assert Status("finish-migrate", running=False, migration="completed").phase == "finish-migrate"
    assert Status("paused", running=False, migration="active").phase == "active"
    assert not Status("postmigrate", running=False, migration="completed").migrating


def test_machine_waits_for_its_state_in_one_run_state_alone() -> None:
    assert a_machine(graph(), status="inmigrate").incoming
    assert not a_machine(graph(), status="paused").incoming


@each(
    ("path", "kind", "plugged"),
    [
        (
            "/machine/peripheral/vda/virtio-backend",
            "virtio-blk-device",
            Device("/machine/peripheral/vda", "virtio-blk-pci"),
        ),
        (
            "/machine/peripheral-anon/device[0]/scsi.0/legacy[0]",
            "scsi-hd",
            Device("/machine/peripheral-anon/device[0]", "usb-storage"),
        ),
        ("/machine/peripheral/nv", "nvme", Device("/machine/peripheral/nv", "nvme")),
        ("/machine/system.flash0", "cfi.pflash01", Device("/machine/system.flash0", "cfi.pflash01")),
        ("/machine/unattached/device[9]", "floppy", Device("/machine/unattached/device[9]", "floppy")),
    ],
)
def test_machine_names_the_device_that_was_plugged_in(path: str, kind: str, plugged: Device) -> None:
    machine = a_machine(graph(vda="base*"), devices={"vda": Device(path, kind)})
    fingerprint = replace(
        machine.fingerprint, devices={"vda": "virtio-blk-pci", "/device[0]": "usb-storage", "nv": "nvme"}
    )
    machine = replace(machine, fingerprint=fingerprint)
    assert machine.plugged("vda") == plugged
    assert machine.plugged("vdb") is None
