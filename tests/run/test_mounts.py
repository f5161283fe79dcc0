from __future__ import annotations

import os

from qmpsnap.run import mounts
from tests.each import each

LOCAL = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n27 1 8:2 / / rw shared:1 master:2 - ext4 /dev/sda2 rw\n"
)


@each(
    ("line", "found"),
    [
        ("41 27 0:52 / /mnt/a\\040b rw - nfs4 server:/x rw,addr=10.0.0.1", {"41": os.makedev(0, 52)}),
        ("42 27 0:53 / /mnt rw shared:3 - fuse.sshfs h: rw", {"42": os.makedev(0, 53)}),
        ("43 27 0:54 / /mnt rw - fuseblk /dev/sdb1 rw", {}),
        ("44 27 0:55 / /- rw - cifs //h/s rw", {"44": os.makedev(0, 55)}),
        ("45 27 0:56 / /mnt rw", {}),
        ("46 27 0:57 / /mnt rw - btrfs nfs4 rw", {}),
    ],
)
def test_remote_mounts_are_those_that_a_server_answers_for(monkeypatch, line, found):
    monkeypatch.setattr(mounts, "kernel_text", {"/proc/7/mountinfo": f"{LOCAL}{line}\n"}.__getitem__)
    assert mounts.remote_mounts(7) == found


@each(
    ("path", "device"),
    [
        ("/mnt/a b", 52),
        ("/mnt/a b/c", 52),
        ("/mnt/a bc", None),
        ("/mnt/a b/local/c", None),
        ("/home/c", None),
        ("/hidden/c", None),
        ("/shown/c", 57),
    ],
)
def test_remote_device_is_that_of_the_mount_that_a_path_is_on(monkeypatch, path, device):
    table = [
        ("0:52", "/mnt/a\\040b", "nfs4"),
        ("8:3", "/mnt/a\\040b/local", "ext4"),
        ("0:54", "/hidden", "nfs4"),
        ("8:4", "/hidden", "ext4"),
        ("8:5", "/shown", "ext4"),
        ("0:57", "/shown", "fuse.sshfs"),
    ]
    lines = [f"{50 + n} 27 {dev} / {place} rw - {kind} x rw\n" for n, (dev, place, kind) in enumerate(table)]
    text = LOCAL + "".join(lines)
    monkeypatch.setattr(mounts, "kernel_text", {f"/proc/{os.getpid()}/mountinfo": text}.__getitem__)
    assert mounts.remote_device(path) == (None if device is None else os.makedev(0, device))


def test_remote_mounts_of_a_process_that_is_gone_are_none():
    assert mounts.remote_mounts(1 << 30) == {}
