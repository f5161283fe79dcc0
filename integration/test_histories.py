"""Machines as people start them, on images as these have grown: every verb keeps every byte.

After each verb the guest reads what it has to, all of it; at the end the machine starts again, in the same
way, from what the answer says. Rows pair a command line with a history, so that each of either is there once.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB, overwritten
from integration.machines import throttled
from qmpsnap.errors import Unsupported

SIZE = 4 * MIB
HEAVY = "cache=none,aio=native"


# -- command lines: the arguments of one disk, from its files and their formats, base first -----------


def libvirt(files, forms):
    """Two nodes for each layer, the chain spelled out, as libvirt 10 does."""
    words, below = [], None
    for number, (file, form) in enumerate(zip(files, forms, strict=True), 1):
        top = file == files[-1]
        options = {"cache": {"direct": True, "no-flush": False}, **({"discard": "unmap"} if top else {})}
        storage = {"driver": "file", "filename": file, "node-name": f"libvirt-{number}-storage"}
        node = {"driver": form, "node-name": f"libvirt-{number}-format", "file": storage["node-name"]}
        storage |= {"auto-read-only": True, **options}
        node |= {"read-only": not top, **options, **({"backing": below} if form == "qcow2" else {})}
        words += ["-blockdev", json.dumps(storage), "-blockdev", json.dumps(node)]
        below = node["node-name"]
    device = {"driver": "virtio-blk-pci", "drive": below, "id": "virtio-disk0", "write-cache": "on"}
    return [*words, "-device", json.dumps(device)]


def drive(options, *device):
    """A -drive with these options, and the device that has it."""

    def words(files, forms):
        return ["-drive", f"file={files[-1].replace(',', ',,')},format={forms[-1]},{options}", *device]

    return words


LINES = {
    "libvirt": libvirt,
    "if=virtio, direct": drive(f"if=virtio,{HEAVY}"),
    "virtio-scsi with a thread": drive(
        "if=none,id=d,discard=unmap,detect-zeroes=unmap",
        *("-object", "iothread,id=io", "-device", "virtio-scsi-pci,id=scsi0,iothread=io"),
        *("-device", "scsi-hd,bus=scsi0.0,drive=d,id=sda"),
    ),
    "nvme": drive("if=none,id=d", "-device", "nvme,drive=d,serial=x,id=nvme0"),
    "throttled": lambda files, _: throttled("vda", files[-1]),
    "if=ide": drive("if=ide"),
    "limited": drive("if=virtio,throttling.bps-total=100000000"),
    "copy-on-read": drive("if=virtio,copy-on-read=on"),
}
REFUSES_REVERT = {"nvme"}  # no root of such a device was moved under a guest that noticed nothing


# -- histories: the images of one disk, base first -----------------------------------------------------


def layer(name, options="", *, size=SIZE, form="qcow2", relative=False):
    return {"name": name, "options": options, "size": size, "form": form, "relative": relative}


HISTORIES = {
    "resized each time": [
        layer("base.qcow2", size=3 * MIB + 512),
        layer("s1.qcow2", size=SIZE - 512),
        layer("s2.qcow2"),
    ],
    "a raw base, by a relative name": [layer("base.img", form="raw"), layer("s1.qcow2", relative=True)],
    "data in a raw file beside": [
        layer("base.qcow2", "data_file={folder}/base.data,data_file_raw=on"),
        layer("s1.qcow2"),
    ],
    "extended L2, clusters of all sizes": [
        layer("base.qcow2", "cluster_size=4k"),
        layer("s1.qcow2", "extended_l2=on,cluster_size=128k"),
        layer("s2.qcow2", "cluster_size=2M"),
    ],
    "of old": [
        layer("base.qcow2", "compat=0.10"),
        layer("s1.qcow2", "compat=0.10"),
        layer("s2.qcow2", "lazy_refcounts=on"),
    ],
    "odd names": [layer("ba,se (1) %41'\"ü.qcow2"), layer("s 1;x,y.qcow2", relative=True)],
    "with bitmaps and snapshots inside": [layer("base.qcow2"), layer("s1.qcow2", "refcount_bits=64")],
    "compressed": [layer("base.qcow2", "compression_type=zstd"), layer("s1.qcow2", "compression_type=zstd")],
}
ROWS = dict(zip(LINES, HISTORIES, strict=True))


def grow(qemu, folder, history):
    """Make the images; return their paths and formats, base first, and what the newest reads."""
    files, forms, data = [], [], b""
    for number, one in enumerate(HISTORIES[history], 1):
        file, below = str(folder / one["name"]), files[-1] if files else None
        backing = Path(below).name if below and one["relative"] else below
        made = {"backing": backing, "backing_format": forms[-1]} if below else {}
        options = one["options"].format(folder=folder)
        qemu.create(file, one["size"], form=one["form"], options=options, **made)
        data = data.ljust(one["size"], b"\0")
        writes = ((number, number * 128 * KIB, 100 * KIB), (0x40 + number, 2 * MIB, 64 * KIB))
        qemu.io(file, *(f"write -q -P {byte} {at} {length}" for byte, at, length in writes), form=one["form"])
        data = overwritten(data, *writes)
        files.append(file)
        forms.append(one["form"])
    if history == "with bitmaps and snapshots inside":
        for file in files:
            qemu.img("bitmap", "--add", file, "tracked")
        qemu.img("snapshot", "-c", "inside", files[0])
    if history == "compressed":
        Path(files[0]).rename(plain := f"{files[0]}.plain")
        options = "compression_type=zstd"
        qemu.img("convert", "-c", "-O", "qcow2", "-o", options, plain, files[0])
        Path(plain).unlink()
    return files, forms, data


class Guest:
    """What is written to the one disk of a machine, and what is to be read from it."""

    def __init__(self, running, data):
        (row,) = (row for row in running.qmp("query-block") if row.get("inserted"))
        self._running, self.data = running, data
        self._disk = row["qdev"] if row["qdev"].startswith("/") else f"/machine/peripheral/{row['qdev']}"

    def write(self, byte, at, length=70 * KIB):
        self._running.write(self._disk, byte, at, length)
        self.data = overwritten(self.data, (byte, at, length))

    def check(self, verb):
        """Demand that every byte is right."""
        at = 0
        sectors = (self.data[start : start + 512] for start in range(0, len(self.data), 512))
        for sector, alike in itertools.groupby(sectors):
            length = sum(map(len, alike))
            assert self._running.reads(self._disk, sector[0], at, length), f"{verb}: {sector[0]:#x} at {at}"
            at += length


@pytest.mark.parametrize("line", ROWS)
async def test_every_verb_keeps_every_byte(qemu, machine, tmp_path, line):
    files, forms, data = grow(qemu, tmp_path, ROWS[line])
    with machine(*LINES[line](files, forms)) as running:
        running.qmp("cont")
        guest = Guest(running, data)
        guest.check("start")
        async with running.connect() as vm:
            (disk,) = (await vm.graph()).disks
            assert (await vm.graph()).chains() == {disk: tuple(files[::-1])}
            guest.write(0xA0, 700 * KIB)
            await vm.snapshot("one")
            guest.write(0xA1, 710 * KIB)
            await vm.snapshot("two")
            then = guest.data
            guest.write(0xA2, 720 * KIB)
            await vm.commit(disk, top="one", base=files[-1])
            guest.check("commit")
            if line in REFUSES_REVERT:
                with pytest.raises(Unsupported, match="not known to accept another root"):
                    await vm.revert("two")
            else:
                await vm.revert("two")
                guest.data = then
                guest.check("revert")
            guest.write(0xA3, 730 * KIB)
            await vm.stream(disk, base=files[0])
            guest.check("stream")
            await vm.snapshot("inside-2", inside=True)
            await vm.mirror(disk, tmp_path / "top.qcow2", ending="pivot", sync="top", discard_internal=True)
            guest.check("mirror of the top")
            guest.write(0xA4, 740 * KIB)
            await vm.mirror(disk, tmp_path / "whole.qcow2", ending="finish")
            whole = guest.data
            guest.write(0xA5, 750 * KIB)
            await vm.snapshot("three")
            guest.write(0xA6, 760 * KIB)
            done = await vm.commit(disk, base="top.qcow2", folded="remove")
            guest.check("commit of the active layer")
            layers = (await vm.graph()).disks[disk].layers[::-1]
            assert await vm.jobs.interrupted() == ()
    files, forms = [layer.file for layer in layers], [layer.format for layer in layers]
    assert done.chains == {disk: tuple(files[::-1])}
    assert qemu.read(files[-1], forms[-1]) == guest.data
    assert qemu.read(tmp_path / "whole.qcow2") == whole
    for file, form in zip(files, forms, strict=True):
        if form == "qcow2":
            qemu.check(file)
    with machine(*LINES[line](files, forms)) as running:
        Guest(running, guest.data).check("start again")
