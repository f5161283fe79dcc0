"""Every way to give QEMU a disk: its name holds for QEMU's life, whatever is done to its chain.

All disks of the table are in one machine. A name that were the root node's would move with each
overlay, and every verb would end with "the disk is gone".
"""

from __future__ import annotations

import json
from functools import partial

import pytest

from integration.cli import Cli
from integration.known_images import MIB, QEMUS
from integration.machines import wait_for
from qmpsnap.errors import AmbiguousName
from qmpsnap.model.disk_names import find_disk

SOME = ("device[0]", "device[2]", "device[5]", "system.flash1", "drive/vdc")
"""One of each kind of name that is neither a device's id nor a drive's."""

CONTROLLERS = (
    "-device", "virtio-scsi-pci,id=s", "-device", "ahci,id=ah", "-device", "qemu-xhci,id=x",
    "-device", "sdhci-pci,id=sdhc", "-device", "isa-fdc,id=fdc", "-device", "usb-uas,bus=x.0,id=uas",
    "-device", "nvme,serial=n2,id=nv",
)  # fmt: skip

# How each disk is given ({n}: a node by -blockdev, {f}: an image for -drive), what it is called, and its QOM
# path where that is not the name. Devices without an id are numbered in the order of the command line.
DISKS = {
    "virtio": (("-device", "virtio-blk-pci,drive={n}"), "device[0]", "peripheral-anon/device[0]"),
    "virtio-id": (("-device", "virtio-blk-pci,drive={n},id=vda"), "vda", "peripheral/vda"),
    "lun0": (("-device", "scsi-hd,bus=s.0,lun=0,drive={n}"), "device[1]", "peripheral-anon/device[1]"),
    "lun1": (("-device", "scsi-hd,bus=s.0,lun=1,drive={n}"), "device[2]", "peripheral-anon/device[2]"),
    "lun2": (("-device", "scsi-hd,bus=s.0,lun=2,drive={n},id=lun2"), "lun2", "peripheral/lun2"),
    "ide": (("-device", "ide-hd,bus=ide.3,drive={n}"), "device[3]", "peripheral-anon/device[3]"),
    "ahci": (("-device", "ide-hd,bus=ah.0,drive={n}"), "device[4]", "peripheral-anon/device[4]"),
    "usb": (("-device", "usb-storage,bus=x.0,drive={n}"), "device[5]", "peripheral-anon/device[5]"),
    "usb-id": (("-device", "usb-storage,bus=x.0,drive={n},id=stick"), "stick", "peripheral/stick"),
    "uas": (("-device", "scsi-hd,bus=uas.0,drive={n}"), "device[6]", "peripheral-anon/device[6]"),
    "nvme": (("-device", "nvme,serial=n1,drive={n}"), "device[7]", "peripheral-anon/device[7]"),
    "nvme-ns": (("-device", "nvme-ns,bus=nv,drive={n}"), "device[8]", "peripheral-anon/device[8]"),
    "floppy": (("-device", "floppy,bus=fdc.0,drive={n}"), "device[9]", "peripheral-anon/device[9]"),
    "card": (("-device", "sd-card,drive={n}"), "device[10]", "peripheral-anon/device[10]"),
    "flash": (("-machine", "pflash1={n}"), "system.flash1", "system.flash1"),
    "-drive": (
        ("-drive", "if=none,id=d1,format=qcow2,file={f}", "-device", "virtio-blk-pci,drive=d1"),
        "d1",
        "peripheral-anon/device[11]",
    ),
    "-drive-id": (
        ("-drive", "if=none,id=d2,format=qcow2,file={f}", "-device", "virtio-blk-pci,drive=d2,id=vdb"),
        "vdb",
        "peripheral/vdb",
    ),
    "-drive-alone": (("-drive", "if=none,id=vdc,format=qcow2,file={f}"), "drive/vdc", ""),
    "virtio-called-as-a-drive": (("-device", "virtio-blk-pci,drive={n},id=vdc"), "vdc", "peripheral/vdc"),
    "if=virtio": (("-drive", "if=virtio,format=qcow2,file={f}"), "virtio0", "peripheral-anon/device[12]"),
    "if=ide": (("-drive", "if=ide,index=0,format=qcow2,file={f}"), "ide0-hd0", ""),
    "-hdb": (("-hdb", "{f}"), "ide1-hd0", ""),
    "if=pflash": (("-drive", "if=pflash,format=qcow2,file={f}"), "pflash0", "system.flash0"),
}  # fmt: skip


def arguments(qemu, folder):
    """The machine of the whole table; one folder for each disk, since all images are called alike."""
    words, files = [*CONTROLLERS], {}
    for number, (way, (given, name, _)) in enumerate(DISKS.items()):
        (folder / way).mkdir()
        files[name] = file = qemu.create(folder / way / "base.qcow2", MIB)
        if "{n}" in " ".join(given):
            image = {"driver": "file", "filename": file}
            words += [
                "-blockdev",
                json.dumps({"driver": "qcow2", "node-name": f"n{number}", "file": image}),
            ]
        words += [word.replace("{n}", f"n{number}").replace("{f}", file) for word in given]
    return words, files


def marked(folder, files, name):
    """The overlay that a moment of that name begins in, by disk."""
    return {disk: file.replace("base.qcow2", f"base.{name}.qcow2") for disk, file in files.items()}


async def listed(vm, names):
    """What is listed: each moment with the disks on which it stands in the chain."""
    moments = await vm.moments()
    found = {one.name: {part.disk for part in one.held if part.in_chain} for one in moments.moments}
    assert set(found) == set(names)
    return found


async def test_every_disk_keeps_its_name_and_its_moments_through_every_verb(qemu, machine, tmp_path):
    words, base = arguments(qemu, tmp_path)
    names = {name for _, name, _ in DISKS.values()}
    paths = {name: f"/machine/{path}" for _, name, path in DISKS.values() if path}
    one, two, three = (marked(tmp_path, base, name) for name in ("one", "two", "three"))
    with machine(*words) as running:
        async with running.connect() as vm:

            async def chains(*layers, **others):
                graph = await vm.graph()
                assert graph.chains() == {
                    name: tuple(layer[name] for layer in others.get(name, layers)) for name in names
                }
                for name, path in paths.items():
                    spellings = {name, path, path.removeprefix("/machine/"), graph.disks[name].qdev}
                    assert {find_disk(graph, spelling).name for spelling in spellings} == {name}

            await chains(base)
            for name in ("one", "two", "three"):
                taken = await vm.snapshot(name)
                assert set(taken.chains) == names
            await chains(three, two, one, base)
            every = {"one": names, "two": names, "three": names}
            assert await listed(vm, every) == every
            for name in SOME:
                await vm.commit(name, top="two", base="one", folded="remove")
            await chains(three, two, one, base, **dict.fromkeys(SOME, (three, one, base)))
            for name in SOME:
                await vm.stream(name, base="base.qcow2")
            await chains(three, two, one, base, **dict.fromkeys(SOME, (three, base)))
            copies = {name: file.replace("base.qcow2", "copy.qcow2") for name, file in base.items()}
            for name in SOME:
                await vm.mirror(name, copies[name], ending="pivot")
            await chains(three, two, one, base, **dict.fromkeys(SOME, (copies,)))
            assert await listed(vm, every) == dict.fromkeys(every, names - {*SOME})
            await vm.snapshot("inside", disks=sorted(names), inside=True)
            assert (await listed(vm, {*every, "inside"}))["inside"] == names
            await vm.delete("inside")
            await listed(vm, every)


def virtio(folder, qemu, name, *, node=None):
    """A virtio disk without an id, on an image of that name in a folder of its own."""
    (folder / name).mkdir()
    image = {"driver": "file", "filename": qemu.create(folder / name / "base.qcow2", MIB)}
    node = {"driver": "qcow2", "node-name": node or name, "file": image}
    return ("-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={name}")


async def test_number_of_a_device_is_never_used_twice(qemu, machine, tmp_path):
    (tmp_path / "again").mkdir()
    again = qemu.create(tmp_path / "again" / "base.qcow2", MIB)
    with machine(
        "-device", "virtio-scsi-pci,id=s", *virtio(tmp_path, qemu, "a"),
        "-blockdev", json.dumps({
            "driver": "qcow2", "node-name": "b", "file": {"driver": "file", "filename": again}
        }),
    ) as running:  # fmt: skip
        async with running.connect() as vm:
            assert set((await vm.graph()).disks) == {"device[0]"}
            for number in (1, 2):
                running.qmp("device_add", driver="scsi-hd", bus="s.0", drive="b")
                name = f"device[{number}]"
                taken = await vm.snapshot(f"plugged{number}", disks=[name])
                assert set(taken.chains) == {name}
                done = await vm.commit(name)
                assert done.chains[name] == (again,)
                running.qmp("device_del", id=f"/machine/peripheral-anon/{name}")
                assert set((await vm.graph()).disks) == {"device[0]"}
                wait_for(lambda: len(running.qmp("query-block")) == 1, "the unplugging")


@pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])
async def test_command_line_takes_a_number_as_it_prints_it(qemu, machine, tmp_path):
    """`device[0]` is a pattern to a shell: what is printed to be typed is quoted."""
    with machine(*virtio(tmp_path, qemu, "a"), *virtio(tmp_path, qemu, "b")) as running:
        run = Cli(running)
        told = run(
            "--json", "snapshot", "one", "--disk", "device[0]", "--disk", f"device[1]={tmp_path}/x=y.qcow2"
        ).json
        assert told["active"] == {
            "device[0]": f"{tmp_path}/a/base.one.qcow2", "device[1]": f"{tmp_path}/x=y.qcow2"
        }  # fmt: skip
        assert run("commit", "device[1]").code == 0
        assert "device[0]" in run("chain", "device[0]").out


async def test_moments_of_disks_that_are_numbered_anew_at_the_next_start_are_found(qemu, machine, tmp_path):
    first = virtio(tmp_path, qemu, "a")
    with machine(*first) as running:
        async with running.connect() as vm:
            done = await vm.snapshot("one")
            overlay = done.active["device[0]"]
    given = json.loads(first[1]) | {"file": {"driver": "file", "filename": overlay}}
    with machine("-device", "virtio-scsi-pci", "-blockdev", json.dumps(given), *first[2:]) as running:
        async with running.connect() as vm:
            assert (await listed(vm, {"one"}))["one"] == {"device[1]"}
            await vm.checkpoint("ck", mode="internal")
            for name in ("ck", "one"):
                assert set((await vm.revert(name)).chains) == {"device[1]"}
            assert await listed(vm, {"one", "ck"}) == {"one": {"device[1]"}, "ck": set()}


async def test_two_devices_on_one_node_go_together(qemu, machine, tmp_path):
    """QEMU replaces a node under whatever stands on it, and would put two overlays on a disk named twice."""
    given = virtio(tmp_path, qemu, "a")
    shared = (*given[:3], f"{given[3]},share-rw=on", "-device", f"{given[3]},share-rw=on")
    base, one, two = (f"{tmp_path}/a/base{part}.qcow2" for part in ("", ".one", ".two"))
    with machine(*shared) as running:
        async with running.connect() as vm:

            async def chains(*files):
                assert (await vm.graph()).chains() == {"device[0]": files, "device[1]": files}

            await vm.snapshot("one", disks=["device[1]"])
            await chains(one, base)
            done = await vm.snapshot("two")
            assert (done.chains, done.notes) == (
                {"device[0]": (two, one, base)}, ("left out: device[1] (the same node as device[0])",)
            )  # fmt: skip
            await chains(two, one, base)
            for take in (vm.snapshot, partial(vm.snapshot, inside=True)):
                with pytest.raises(AmbiguousName, match="two devices on the same node"):
                    await take("three", disks=["device[0]", "device[1]"])
            await vm.snapshot("inside", inside=True)
            await vm.delete("inside")
            await vm.stream("device[1]", base="base.qcow2")
            await chains(two, base)
            await vm.mirror("device[0]", f"{tmp_path}/copy.qcow2", ending="pivot")
            await chains(f"{tmp_path}/copy.qcow2")
