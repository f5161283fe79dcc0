"""A machine's description, and the command line that it becomes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import BadArgument, Unsupported
from qmpsnap.model.machine_description import Machine, MachineDisk, Nic
from qmpsnap.model.start import GuestMemory, Start
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Mapping

BARE = ["-m", "256", "-nodefaults", "-no-user-config", "-display", "none"]


def values(argv: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(argv) if name == option]


def devices(*disks: MachineDisk, **options: Any) -> list[str]:
    return values(Machine(disks=disks, **options).argv(), "-device")


def test_argv_of_a_bare_machine():
    assert Machine(console=False).argv() == ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", *BARE]


def test_argv_of_a_machine_with_everything_but_disks():
    machine = Machine(
        qemu=Path("/q/qemu"),
        machine="pc",
        accel="kvm",
        memory_mib=64,
        cpus=2,
        kernel=Path("/k,1"),
        initrd="/i",
        append="console=ttyS0 quiet",
        ports=["org.qemu.guest_agent.0", "a,b"],
        nics=[Nic(), Nic("socket,mcast=230.0.0.1:4000", mac="52:54:00:12:34:56", device="e1000")],
        rng=True,
        arguments=["-snapshot", Path("/x")],
    )
    assert machine.argv(console="socket,fd=5", ports={"a,b": "socket,fd=6"}) == [
        *("/q/qemu", "-machine", "pc", "-accel", "kvm", "-m", "64", "-smp", "2"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", "/k,1", "-initrd", "/i", "-append", "console=ttyS0 quiet", "-device", "virtio-rng-pci"),
        *("-netdev", "user,id=net0", "-device", "virtio-net-pci,netdev=net0,id=nic0"),
        *("-netdev", "socket,id=net1,mcast=230.0.0.1:4000"),
        *("-device", "e1000,netdev=net1,id=nic1,mac=52:54:00:12:34:56", "-snapshot", "/x"),
        *("-chardev", "socket,id=console,fd=5", "-serial", "chardev:console"),
        *("-device", "virtio-serial-pci", "-chardev", "null,id=port0"),
        *("-device", "virtserialport,chardev=port0,id=port0,name=org.qemu.guest_agent.0"),
        *("-chardev", "socket,id=port1,fd=6"),
        *("-device", "virtserialport,chardev=port1,id=port1,name=a,,b"),
    ]


def test_argv_names_the_nodes_of_a_disk():
    argv = Machine(disks=[MachineDisk("vda", "/d/a,b", format="raw", device="werror=stop")]).argv()
    assert [json.loads(value) for value in values(argv, "-blockdev")] == [
        {
            "driver": "raw",
            "node-name": "vda-format",
            "file": {"driver": "file", "filename": "/d/a,b", "node-name": "vda-file"},
        }
    ]
    assert "virtio-blk-pci,id=vda,serial=vda,werror=stop,drive=vda-format" in values(argv, "-device")


def test_argv_takes_a_relative_file_for_no_protocol_and_doubles_commas():
    argv = Machine(disks=[MachineDisk("vda", "nbd:a,b", legacy=True)]).argv()
    assert values(argv, "-drive") == ["if=none,id=drive-vda,file=./nbd:a,,b,format=qcow2"]


def test_argv_brings_the_controllers_that_the_disks_need():
    disks = [MachineDisk(f"d{number}", "/d", bus="ide") for number in range(4)]
    scsi = MachineDisk("s", "/s", bus="scsi")
    on_scsi = "scsi-hd,bus=scsi.0,id=s,serial=s,drive=s-format"
    assert devices(scsi) == ["virtio-scsi-pci,id=scsi", on_scsi]
    assert [device.partition(",id=")[0] for device in devices(*disks, scsi)] == [
        "virtio-scsi-pci", "piix3-ide", "ide-hd,bus=pata.0,unit=0", "ide-hd,bus=pata.0,unit=1",
        "ide-hd,bus=pata.1,unit=0", "ide-hd,bus=pata.1,unit=1", "scsi-hd,bus=scsi.0",
    ]  # fmt: skip
    assert [device.partition(",id=")[0] for device in devices(*disks[:1], machine="pc-i440fx-7.2")] == [
        "ide-hd,bus=ide.0,unit=0"
    ]
    assert devices(disks[0], machine="pc-q35-7.2")[0] == "piix3-ide,id=pata"


def test_argv_of_a_start_has_its_images_as_qcow2_and_its_arguments_at_the_end():
    memory = GuestMemory(file="/m", size_bytes=1 << 28, share=False)
    start = Start(disks={"vda": "/overlay"}, memory=memory, incoming=True)
    disks = [MachineDisk("vda", "/raw", format="raw")]
    argv = Machine(disks=disks, arguments=["-no-reboot", "-pidfile", "/p"], console=False).argv(start)
    (node,) = (json.loads(value) for value in values(argv, "-blockdev"))
    assert (node["driver"], node["file"]["filename"]) == ("qcow2", "/overlay")
    assert argv[argv.index("-no-reboot") + 1 :] == [*start.arguments]


def test_argv_refuses_a_disk_that_the_description_does_not_have():
    with pytest.raises(Unsupported, match="recognised as the disk 'vdb'") as refused:
        Machine(disks=[MachineDisk("vda", "/a")]).argv(Start(disks={"vdb": "/b"}))
    assert "launcher=" in refused.value.hint


def test_description_is_the_same_by_list_and_by_tuple_and_can_be_hashed():
    listed = Machine(disks=[MachineDisk("vda", "/a")], ports=["p"], nics=[Nic()], arguments=["-S"])
    assert listed == Machine(
        disks=(MachineDisk("vda", "/a"),), ports=("p",), nics=(Nic(),), arguments=("-S",)
    )
    assert len({listed, listed}) == 1


VDA = MachineDisk("vda", "/a")
MACHINE: Mapping[str, Any] = {
    "qemu": ("", None, 1, b"/q", "/\0"),
    "machine": ("", None, 1, "q35\0"),
    "accel": ("", "xen", 1),
    "memory_mib": (0, -1, 1.5, "256", None, True),
    "cpus": (0, -1, 1.5, "1", None, True),
    "disks": (None, "vda", {"vda": "/a"}, [("vda", "/a")], [VDA, VDA], VDA, [MachineDisk("nic0", "/a")]),
    "kernel": (None, 1, b"/k", "/\0"),
    "initrd": (None, 1, b"/k", "/\0"),
    "append": (None, 1, b"quiet", "a\0"),
    "console": (None, 1, "yes", "/log"),
    "ports": (None, "p", [""], ["p", "p"], [1], [f"p{number}" for number in range(31)]),
    "nics": (None, "user", ["user"], Nic()),
    "rng": (None, 1, "yes"),
    "arguments": (None, "-S", [1], ["a\0"], [b"-S"]),
}
DISK: Mapping[str, Any] = {
    "name": ("", None, 1, "1", "a b", "a,b", "a" * 25, "vda\n"),
    "file": ("", None, 1, b"/a", "/\0"),
    "format": ("", None, 1),
    "bus": ("", "sata", None),
    "legacy": (None, 1),
    "device": (None, 1, "a\0"),
}
NIC: Mapping[str, Any] = {
    "netdev": ("", None, 1),
    "mac": (None, 1, "52:54:00:12:34", "53:54:00:12:34:56", "52-54-00-12-34-56", "52:54:00:12:34:5g"),
    "device": ("", None, 1),
}


@each(
    ("kind", "right", "wrong"),
    [(Machine, {"kernel": "/k"}, MACHINE), (MachineDisk, {"name": "a", "file": "/a"}, DISK), (Nic, {}, NIC)],
)
def test_wrong_value_is_refused(kind: Any, right: dict[str, Any], wrong: Mapping[str, Any]) -> None:
    assert set(wrong) == set(kind.__dataclass_fields__)
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(BadArgument) as refused:
                kind(**{**right, field: value})
            assert refused.value.parameter == field, (field, value)


def test_machine_refuses_what_needs_a_kernel_without_one_and_a_fifth_ide_disk():
    for machine in ({"initrd": "/i"}, {"append": "quiet"}):
        with pytest.raises(BadArgument, match="need a kernel"):
            Machine(**machine)  # type: ignore[arg-type]
    with pytest.raises(BadArgument, match="at most 4"):
        Machine(disks=[MachineDisk(f"d{number}", "/d", bus="ide") for number in range(5)])
