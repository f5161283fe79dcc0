"""How a disk's files are opened stays over a revert in place, there and back: cache, O_DIRECT, discards."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from integration.known_images import KIB, MIB
from integration.machines import blockdev
from integration.states import take
from qmpsnap.errors import CommandFailed
from qmpsnap.plan.vmstate.branch import NOT_TOLD

DISCARDED = (0xA1, 6 * MIB, 1024 * KIB)
DIRECT = {"writeback": True, "direct": True, "no-flush": False}


@pytest.fixture(autouse=True)
def _o_direct(tmp_path):
    try:
        os.close(os.open(tmp_path / "tried", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip(f"no O_DIRECT on the file system of {tmp_path}")
    (tmp_path / "tried").unlink()


def direct_drive(name, file):
    return (
        "-drive", f"if=none,id=drive-{name},format=qcow2,file={file},cache=none,discard=unmap",
        "-device", f"virtio-blk-pci,drive=drive-{name},id={name}",
    )  # fmt: skip


def direct_blockdev(name, file, *, above=""):
    """Opened by -blockdev; `above` names a throttle of the user's over it."""
    options = {
        "driver": "qcow2",
        "node-name": f"{name}-node",
        "cache": {"direct": True},
        "discard": "unmap",
        "detect-zeroes": "on",
        "file": {"driver": "file", "filename": str(file)},
    }
    device = ("-device", f"virtio-blk-pci,drive={above or options['node-name']},id={name}")
    throttle = {
        "driver": "throttle",
        "throttle-group": "tg",
        "node-name": above,
        "file": options["node-name"],
    }
    throttle |= {"cache": {"direct": True}, "discard": "unmap"}
    over = ("-object", "throttle-group,id=tg", "-blockdev", json.dumps(throttle)) if above else ()
    return ("-blockdev", json.dumps(options), *over, *device)


def direct_file(name, file):
    """Only the file is opened so, and by a node of its own: the image's options say nothing of it."""
    below = {"driver": "file", "node-name": "f", "filename": str(file), "cache": {"direct": True}}
    options = {"driver": "qcow2", "node-name": f"{name}-node", "file": "f"}
    device = ("-device", f"virtio-blk-pci,drive={name}-node,id={name}")
    return ("-blockdev", json.dumps(below), "-blockdev", json.dumps(options), *device)


def throttled(name, file):
    return direct_blockdev(name, file, above="thr")


WAYS = {"drive": direct_drive, "blockdev": direct_blockdev, "throttle": throttled}


def flags(running, file):
    """Whether each descriptor that QEMU has on a file is O_DIRECT."""
    found = []
    for entry in Path(f"/proc/{running.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(entry) == str(file):  # noqa: PTH115
                said = Path(f"/proc/{running.pid}/fdinfo/{entry.name}").read_text()
                found.append(bool(int(re.search(r"flags:\s*(\d+)", said)[1], 8) & os.O_DIRECT))
    return found


def demand_direct(running, chain):
    """Demand that a disk's whole chain passes the page cache by, as QEMU says and as the host does."""
    for file in chain:
        assert flags(running, file) != [], file
        assert all(flags(running, file)), f"{file} is buffered"
    for node in running.qmp("query-named-block-nodes", flat=True):
        if node["drv"] != "throttle":
            assert node["cache"] == DIRECT, node["file"]
    for disk in running.qmp("query-block"):
        assert disk["inserted"]["cache"]["direct"]  # its writeback is the device's


def frees(running, disk, file):
    """Whether what the guest discards is freed in the file."""
    running.write(disk, *DISCARDED)
    running.qemu_io(disk, "flush")
    full = Path(file).stat().st_blocks
    running.qemu_io(disk, f"discard {DISCARDED[1]} {DISCARDED[2]}")
    running.qemu_io(disk, "flush")
    return full - Path(file).stat().st_blocks >= DISCARDED[2] // 512


def fail_at_the_look(vm):
    """Let the devices' roots be found wrong, once: what was moved is put back."""
    perform = vm._target.perform

    async def wrong(step):
        if step.command == "check-roots":
            vm._target.perform = perform
            step = replace(step, arguments=dict.fromkeys(step.arguments, "nowhere"))
        return await perform(step)

    vm._target.perform = wrong


@pytest.mark.parametrize("way", WAYS)
async def test_revert_opens_the_new_root_and_its_chain_as_the_old_one_was(images, machine, way, kind):
    made = images("base <- s1")
    with machine(*WAYS[way]("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            demand_direct(running, taken.chains["vda"])
            later = await take(vm, "c2", kind)
            for name in ("c1", "c2"):  # on layers that are open, then on one that has to be opened
                back = await vm.revert(name)
                demand_direct(running, back.chains["vda"])
                assert frees(running, "vda", back.active["vda"])
                assert NOT_TOLD in back.notes
            assert back.chains["vda"][1:] == later.chains["vda"][1:]


@pytest.mark.parametrize("way", WAYS)
async def test_revert_that_is_taken_back_opens_the_old_root_as_it_was(images, machine, way, kind):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*WAYS[way]("vda", one.active), *direct_blockdev("vdb", two.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
            fail_at_the_look(vm)
            with pytest.raises(CommandFailed, match="did not take the node"):
                await vm.revert("c1")
            demand_direct(running, (*taken.chains["vda"], *taken.chains["vdb"]))
            assert (await vm.graph()).chains() == taken.chains
            assert frees(running, "vda", taken.active["vda"])


async def test_revert_goes_by_how_the_file_is_opened(images, machine, kind):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
    with machine(*direct_file("vda", taken.active["vda"])) as running:
        running.qmp("cont")
        assert flags(running, taken.active["vda"]) == [True]
        async with running.connect() as vm:
            back = await vm.revert("c1")
            assert flags(running, back.active["vda"]) == [True]


async def test_revert_keeps_what_the_disk_does_with_zeroes(images, machine, kind):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            taken = await take(vm, "c1", kind)
    with machine(*direct_blockdev("vda", taken.active["vda"])) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            back = await vm.revert("c1")
        inserted = running.qmp("query-block")[0]["inserted"]
        assert (inserted["file"], inserted["detect_zeroes"]) == (back.active["vda"], "on")


async def test_revert_leaves_a_buffered_disk_buffered(images, machine, kind):
    with machine(*blockdev("vda", images("base").active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await take(vm, "c1", kind)
            back = await vm.revert("c1")
            assert flags(running, back.active["vda"]) == [False]
