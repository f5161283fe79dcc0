"""Streams (E1, E2; T6, T7): the layer stands alone or on what is kept, and every layer reads what it read."""

from __future__ import annotations

import json
import shlex

import pytest

from integration.cli import Cli
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, messages, traced
from integration.off import driven
from qmpsnap.errors import Changed, NotFound, NotInChain, Refused, Unsupported
from qmpsnap.plan.intent import Stream
from qmpsnap.run.outcome import Hooks

CHAIN = "base <- s1 <- s2 <- s3 <- s4"
CASES = {  # (into, base): what the chain becomes
    (None, None): "s4",
    (None, "base"): "base <- s4",  # T6
    (None, "s2"): "base <- s1 <- s2 <- s4",
    ("s3", None): "s3 <- s4",
    ("s3", "s1"): "base <- s1 <- s3 <- s4",
    ("s2", "base"): "base <- s2 <- s3 <- s4",
    ("s1", None): "s1 <- s2 <- s3 <- s4",
}


def files_of(made, drawing):
    """The files of a drawing, active first."""
    by_name = {file.rpartition("/")[2].removesuffix(".qcow2"): file for file in made.files}
    return tuple(by_name[name] for name in reversed(drawing.split(" <- ")))


@pytest.mark.parametrize("way", ["live", "off"])
@pytest.mark.parametrize(("case", "after"), CASES.items(), ids=[f"{into} on {base}" for into, base in CASES])
async def test_stream_leaves_the_layer_on_what_is_kept(qemu, images, machine, tmp_path, case, after, way):
    made = images(CHAIN)
    before = listing(tmp_path)
    async with driven(way, qemu, machine, {"vda": made.active}, ("vda", 0xA1, 6 * MIB, 512)) as vm:
        plan = await vm.plan(Stream("vda", into=case[0], base=case[1]))
        with traced(vm) as sent:
            done = await vm.run(plan)
        assert sent == messages(plan)
        assert done.chains == plan.chains_after == {"vda": files_of(made, after)}
        assert (done.left, done.invalid, done.active, await vm.jobs.interrupted()) == ((), (), {}, ())
    qemu.check_chain(*files_of(made, after))
    assert listing(tmp_path) == before
    for index, file in enumerate(made.files):
        expected = made.content[index]
        if file == made.active:
            expected = overwritten(expected, (0xA1, 6 * MIB, 512))
        assert qemu.read(file) == expected


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_stream_works_however_the_disk_was_given(qemu, images, machine, way):
    made = images()
    with machine(*way("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.stream("vda")
            assert done.chains == {"vda": (made.active,)}
    qemu.check_chain(made.active)
    assert qemu.read(made.active) == made.content[-1]


async def test_stream_while_the_guest_writes(qemu, images, machine):
    made = images()
    writes = []

    def guest(progress):
        writes.append((0x21 + len(writes), 5 * MIB + 48 * KIB * len(writes), 64 * KIB))
        running.write("vda", *writes[-1])
        if len(writes) == 3:
            running.qmp("block-job-set-speed", device=progress.job.id, speed=4 * MIB)

    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.stream("vda", speed=16 * KIB, hooks=Hooks(progress=guest, interval=0.05))
    assert len(writes) >= 3
    assert qemu.read(made.active) == overwritten(made.content[-1], *writes)


async def test_stream_keeps_relative_names_relative(qemu, images, machine, tmp_path):
    made = images("base <- s1 <- s2 <- s3", relative=True, folder="a")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.stream("vda", base="base")
            await vm.graph()
    moved = tmp_path / "b"
    (tmp_path / "a").rename(moved)
    assert [one["filename"] for one in qemu.chain(moved / "s3.qcow2")] == [
        f"{moved}/s3.qcow2",
        f"{moved}/base.qcow2",
    ]
    assert qemu.read(moved / "s3.qcow2") == content(4)


async def test_stream_names_the_nodes_of_others_that_stay(images, machine):
    made = images()
    nodes = []
    for index, file in enumerate(made.files):
        options = {"driver": "qcow2", "node-name": f"n{index}", "file": {"driver": "file", "filename": file}}
        if index:
            options["backing"] = f"n{index - 1}"
        nodes += ["-blockdev", json.dumps(options)]
    with machine(*nodes, "-device", "virtio-blk-pci,drive=n2,id=vda") as running:
        async with running.connect() as vm:
            done = await vm.stream("vda")
        assert set(done.left) == {
            """qmpsnap qmp blockdev-del '{"node-name": "n0"}'""",
            """qmpsnap qmp blockdev-del '{"node-name": "n1"}'""",
        }
        for command in done.left:
            assert Cli(running)(*shlex.split(command)[1:]).code == 0


@pytest.mark.parametrize("way", ["live", "off"])
async def test_stream_refuses_what_cannot_be(qemu, images, machine, tmp_path, way):
    made, raw = images(), images("base", folder="raw", base_format="raw")
    cases = [
        (Stream("vda", base="s2"), NotInChain),
        (Stream("vda", into="base", base="s1"), NotInChain),
        (Stream("vda", base="s9"), NotInChain),
        (Stream("vda", base="s1"), Unsupported),
        (Stream("vda", into="base"), Unsupported),
        (Stream("vdb"), Unsupported),
        (Stream("vdz"), NotFound),
    ]
    disks, formats = {"vda": made.active, "vdb": raw.active}, {"vdb": "raw"}
    async with driven(way, qemu, machine, disks, formats=formats) as vm:
        before = listing(tmp_path), await vm.graph()
        for intent, error in cases:
            with traced(vm) as sent, pytest.raises(Refused) as caught:
                await vm.run(await vm.plan(intent))
            assert (type(caught.value), sent, caught.value.changed) == (error, [], Changed.NO)
        assert (listing(tmp_path), await vm.graph()) == before


async def test_stream_is_on_the_disk_when_it_is_reported(qemu, images, machine):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.stream("vda")
            running.kill()
    assert qemu.read(made.active) == made.content[-1]
