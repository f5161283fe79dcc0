"""A disk that is attached read-only keeps its files: every verb that would change them is refused."""

from __future__ import annotations

import json

import pytest

from integration.known_images import QEMUS
from integration.machines import drive, listing, traced
from qmpsnap.errors import Refused
from qmpsnap.plan.intent import (
    Commit,
    Delete,
    Mirror,
    Revert,
    Snapshot,
    Stream,
)


def given(way, active):
    match way:
        case "-drive readonly=on":
            escaped = str(active).replace(",", ",,")
            words = f"if=none,id=d,format=qcow2,readonly=on,file={escaped}"
            return ("-drive", words, "-device", "virtio-blk-pci,drive=d,id=ro")
        case "-blockdev read-only":
            image = {"driver": "file", "filename": active, "read-only": True}
            node = {"driver": "qcow2", "node-name": "n", "read-only": True, "file": image}
            return ("-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=n,id=ro")
        case "-cdrom":
            return (
                "-drive",
                f"if=none,id=d,media=cdrom,format=qcow2,file={active}",
                "-device",
                "ide-cd,drive=d,id=ro",
            )


INTENTS = {
    "snapshot": lambda _: Snapshot("two", disks=("ro",)),
    "snapshot inside": lambda _: Snapshot("two", disks=("ro",), inside=True),
    "stream": lambda _: Stream("ro"),
    "stream to a base": lambda _: Stream("ro", base="base.qcow2"),
    "stream into a layer": lambda _: Stream("ro", into="s1.qcow2"),
    "commit": lambda _: Commit("ro"),
    "commit between": lambda _: Commit("ro", top="s1", base="base"),
    "commit that keeps": lambda _: Commit("ro", keep_overlay=True),
    "mirror with pivot": lambda folder: Mirror("ro", f"{folder}/copy.qcow2", ending="pivot"),
    "delete inside": lambda _: Delete("inside"),
    "delete": lambda _: Delete("one"),
    "revert": lambda _: Revert("one"),
    "revert that discards": lambda _: Revert("one", discard=True),
}


@pytest.mark.parametrize("way", ["-drive readonly=on", "-blockdev read-only", "-cdrom"])
@pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])
async def test_disk_that_is_attached_read_only_keeps_its_files(qemu, images, machine, tmp_path, way):
    made = images("base <- s1")
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("one")
            active = (await vm.snapshot("later")).active["vda"]
            await vm.snapshot("inside", inside=True)
    wrong = []
    with machine(*given(way, active)) as running:
        async with running.connect() as vm:
            before = listing(tmp_path), running.roots()
            for name, intent in INTENTS.items():
                with traced(vm) as sent, pytest.raises(Refused) as caught:
                    await vm.run(await vm.plan(intent(tmp_path)))
                if "read-only" not in str(caught.value) and name != "delete":  # which is refused on all disks
                    wrong.append((name, str(caught.value)))
                assert (sent, listing(tmp_path), running.roots()) == ([], *before)
            await vm.mirror("ro", f"{tmp_path}/copy.qcow2", ending="finish")  # reads alone
    assert wrong == []
    assert qemu.img("compare", f"{tmp_path}/copy.qcow2", active).startswith("Images are identical")
