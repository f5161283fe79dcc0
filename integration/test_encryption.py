"""An encrypted disk: nothing of it gets into a file in the clear, unless the caller says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB
from integration.machines import listing, traced
from qmpsnap.errors import Unsupported
from qmpsnap.plan.checks.encryption import CLEAR
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Mirror,
    Revert,
    Save,
    Snapshot,
    Stream,
)

SECRET = ("--object", "secret,id=s,data=abc")
MARK = b"\xa7" * 512  # what the guest writes: to be found in no file


def encrypted(qemu, folder, way, *, backing=None):
    """Make an encrypted image; return its path and the options of its node."""
    file = str(folder / f"{way}{'-top' if backing else ''}.img")

    def make(*words):
        for _ in range(9):  # it measures how fast the host is, and may find itself unable to
            qemu.img("create", "-q", *SECRET, *words, check=False)
            if Path(file).exists() and '"encrypted": true' in qemu.img("info", "--output=json", file):
                return
        raise AssertionError(f"{file} could not be made")

    base = ("-u", "-b", backing, "-F", "qcow2") if backing else ()
    if way == "qcow2":
        options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        make("-f", "qcow2", *base, "-o", options, file, MIB)
        more = {"driver": "qcow2", "encrypt": {"format": "luks", "key-secret": "s"}}
    else:
        make("-f", "luks", "-o", "key-secret=s,iter-time=10", file, MIB)
        more = {"driver": "luks", "key-secret": "s"}
    node = {**more, "file": {"driver": "file", "filename": file}}
    return file, node if way != "raw on luks" else {"driver": "raw", "file": node}


def given(node, name="vda"):
    """The arguments of a disk on that node."""
    return (
        "-blockdev",
        json.dumps({**node, "node-name": f"{name}-node"}),
        "-device",
        f"virtio-blk-pci,drive={name}-node,id={name}",
    )


def clear(folder):
    """The files in which what the guest wrote can be read."""
    return {path.name for path in folder.rglob("*") if path.is_file() and MARK in path.read_bytes()}


@pytest.mark.parametrize("way", ["qcow2", "luks", "raw on luks"])
async def test_encrypted_disk_is_not_copied_in_the_clear(qemu, machine, tmp_path, way):
    file, node = encrypted(qemu, tmp_path, way)
    intents = [
        Snapshot("one"),
        Mirror("vda", f"{tmp_path}/copy.qcow2", ending="finish", format="qcow2"),
        Mirror("vda", f"{tmp_path}/copy.raw", ending="pivot", format="raw"),
        Checkpoint("one"),
        Checkpoint("one", "background"),
        Checkpoint("one", "in-place"),
        Save(f"{tmp_path}/state"),
    ]
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            before = listing(tmp_path), running.roots()
            for intent in intents:
                with traced(vm) as sent, pytest.raises(Unsupported, match="unencrypted") as caught:
                    await vm.run(await vm.plan(intent))
                assert (caught.value.feature, sent) == (CLEAR, [])
                assert (listing(tmp_path), running.roots()) == before
            running.write("vda", 0xA7, 0, 64 * KIB)
            running.qmp.hmp("qemu-io vda-node flush")
            assert clear(tmp_path) == set()
            if way == "qcow2":
                await vm.snapshot("inside", inside=True)
                running.write("vda", 0xA7, 0, 64 * KIB)
                await vm.delete("inside")
            overlay = (await vm.snapshot("one", plain=True)).active["vda"]
            running.write("vda", 0xA7, 128 * KIB, 64 * KIB)
            await vm.snapshot("two")  # the guest writes in the clear by now
            for intent in (Stream("vda"), Revert("one")):
                with traced(vm) as sent, pytest.raises(Unsupported, match="encrypted"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
            await vm.commit("vda", top="two", base="one", folded="remove")
            assert clear(tmp_path) == {overlay.rpartition("/")[2]}
            await vm.commit("vda", folded="remove")  # down into what is encrypted
            assert clear(tmp_path) == set()
            await vm.mirror("vda", f"{tmp_path}/copy.raw", ending="finish", format="raw", plain=True)
            running.read("vda", 0xA7, 128 * KIB, 64 * KIB)
            assert (await vm.graph()).disks["vda"].files == (file,)
    assert clear(tmp_path) == {"copy.raw"}


async def test_encrypted_layer_is_not_merged_into_a_plain_one(qemu, machine, tmp_path):
    base = qemu.create(tmp_path / "base.img", MIB)
    top, node = encrypted(qemu, tmp_path, "qcow2", backing=base)
    with machine("-object", SECRET[1], *given(node)) as running:
        async with running.connect() as vm:
            running.write("vda", 0xA7, 0, 64 * KIB)
            for intent in (
                Commit("vda"),
                Commit("vda", keep_overlay=True),
                Mirror("vda", f"{tmp_path}/c", ending="pivot", sync="top", format="qcow2"),
            ):
                with traced(vm) as sent, pytest.raises(Unsupported, match="unencrypted"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
            await vm.stream("vda")  # what was plain is encrypted now
            assert (await vm.graph()).disks["vda"].files == (top,)
    assert clear(tmp_path) == set()


async def test_memory_does_not_go_inside_an_encrypted_image_which_would_end_qemu(qemu, machine, tmp_path):
    _, secret = encrypted(qemu, tmp_path, "qcow2")
    file = qemu.create(tmp_path / "other.img", MIB)
    disks = {"vda": secret, "vdb": {"driver": "qcow2", "file": {"driver": "file", "filename": file}}}
    cases = {("vda", "vdb"): "VM state into an encrypted image", ("vdb", "vda"): "unencrypted in an image"}
    for names, refused in cases.items():
        words = [word for name in names for word in given(disks[name], name)]
        with machine("-object", SECRET[1], *words) as running:
            async with running.connect() as vm:
                for via in ("hmp", "jobs"):
                    with pytest.raises(Unsupported, match=refused):
                        await vm.plan(Checkpoint("ck", "internal", via=via))
                if names[0] == "vda":
                    with pytest.raises(Unsupported, match=refused):
                        await vm.plan(Checkpoint("ck", "internal", plain=True))
                    continue
                await vm.checkpoint("ck", mode="internal", plain=True)
                await vm.revert("ck")
                await vm.delete("ck")
