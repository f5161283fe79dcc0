"""Which monitor of a machine is offered."""

from __future__ import annotations

from qmpsnap.model.host_process import HostProcess
from qmpsnap.model.running_qemu import OpenDisk, QmpSocket, RunningQemu, SocketState
from tests.each import each

FREE = QmpSocket("/free", "unix:free", SocketState.FREE)
HELD = QmpSocket("/held", "unix:held", SocketState.HELD, (HostProcess(7),))
DISK = OpenDisk("vda", ("/a", "/b"), "nbd:h:1")
NONE = QmpSocket("", "stdio", SocketState.UNREACHABLE)


@each(
    ("sockets", "address"),
    [((), ""), ((NONE,), ""), ((HELD,), "/held"), ((NONE, HELD, FREE), "/free"), ((FREE, HELD), "/free")],
)
def test_address_is_that_of_a_free_monitor_or_else_of_any(sockets, address):
    assert RunningQemu(HostProcess(1), sockets=sockets).address == address


def test_qemu_is_plain_json():
    qemu = RunningQemu(HostProcess(1, "qemu-kvm", "bob"), "vm", sockets=(HELD,), disks=(DISK,))
    assert qemu.to_json() == {
        "process": {"pid": 1, "program": "qemu-kvm", "user": "bob"},
        "name": "vm",
        "daemon": False,
        "sockets": (
            {
                "address": "/held",
                "text": "unix:held",
                "state": "held",
                "clients": ({"pid": 7, "program": "", "user": ""},),
                "remote": (),
                "why": "",
            },
        ),
        "disks": ({"disk": "vda", "files": ("/a", "/b"), "rest": "nbd:h:1"},),
    }
