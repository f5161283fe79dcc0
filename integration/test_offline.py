"""Machines that are off (A4, B3, E5, F1): the same operations, through a storage daemon of ours.

What is the same live and offline is tested once for both: the tables of streams and commits, and their
refusals, in test_stream.py and test_commit.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, listing, messages, traced, wait_for
from integration.off import daemons, offline
from qmpsnap.errors import (
    ConnectFailed,
    ImageInUse,
    Interrupted,
    LinkLost,
    Refused,
    Unsupported,
)
from qmpsnap.plan.intent import Checkpoint, Commit, Mirror, Restore, Save, Snapshot, Stream
from qmpsnap.run.outcome import Hooks

WRITE = (0xA1, 6 * MIB, 512)


def started_from(machine, active, pattern=WRITE):
    """Start a machine from these images; its guest writes to each of its disks."""
    with machine(*[word for disk in active for word in blockdev(disk, active[disk])]) as running:
        for disk in active:
            running.write(disk, *pattern)


def without_nodes(graph):
    """What the headers tell of a graph."""
    return {
        name: [
            (
                (layer.file, layer.format, layer.virtual_size, layer.backing, layer.backing_format),
                (layer.allocated, layer.read_only, layer.node, layer.file_node),
                [(one.id, one.name, one.date) for one in layer.snapshots],
            )
            for layer in disk.layers
        ]
        for name, disk in graph.disks.items()
    }


async def test_snapshot_of_two_disks_then_their_machine_starts_from_the_overlays(
    qemu, images, machine, tmp_path
):
    made, other = images("base <- s1", folder="a"), images("base", folder="b")
    async with offline(qemu, {"vda": made.active, "vdb": other.active}) as vm:
        plan = await vm.plan(Snapshot("n1"))
        with traced(vm) as sent:
            done = await vm.run(plan)
        assert sent == messages(plan)
        assert done.active == {
            "vda": f"{tmp_path}/a/base.n1.qcow2",
            "vdb": f"{tmp_path}/b/base.n1.qcow2",
        }
        assert (done.standstill_s, done.left) == (None, ())
        assert [moment.name for moment in (await vm.moments()).moments] == ["n1"]
    started_from(machine, done.active)
    qemu.check_chain(*done.chains["vda"])
    assert qemu.read(made.active) == made.content[-1]
    assert qemu.read(other.active) == other.content[-1]
    assert qemu.read(done.active["vda"]) == overwritten(made.content[-1], WRITE)


@pytest.mark.parametrize("sync", ["full", "top"])
async def test_mirror_ends_as_a_copy_and_as_the_disk(qemu, images, machine, tmp_path, sync):
    made = images("base <- s1")
    base, s1 = made.files
    copy, pivot = str(tmp_path / "copy.qcow2"), str(tmp_path / "pivot.qcow2")
    async with offline(qemu, {"vda": s1}) as vm:
        done = await vm.mirror("vda", copy, ending="finish", sync=sync)
        assert done.chains["vda"] == (s1, base)
        done = await vm.mirror("vda", pivot, ending="pivot", sync=sync)
        assert done.chains["vda"] == ((pivot,) if sync == "full" else (pivot, base))
        assert {node.file for node in (await vm.graph()).nodes.values()} == {*done.chains["vda"]}
    started_from(machine, done.active)
    assert qemu.read(copy) == made.content[-1]
    assert qemu.read(pivot) == overwritten(made.content[-1], WRITE)


async def test_chains_as_a_daemon_has_them_and_as_the_headers_tell_are_the_same(qemu, images, tmp_path):
    made = images("base <- s1 <- s2", relative=True)
    qemu.img("snapshot", "-q", "-c", "inside", made.files[1])
    raw = tmp_path / "r"
    raw.write_bytes(content(1))
    over = qemu.create(tmp_path / "over.qcow2", backing="r", backing_format="raw")
    disks = {"vda": made.active, "vdb": over}
    async with offline(qemu, disks) as vm, offline(qemu, disks, read_only=True) as looked:
        expected = without_nodes(await vm.graph())
        assert without_nodes(await looked.graph()) == expected
        assert [one.name for one in (await looked.moments()).moments] == ["inside"]
    assert [file for (file, *_), *_ in expected["vda"]] == [
        str(Path(made.active).parent / one["filename"]) for one in qemu.chain(made.active)
    ]


async def test_thin_clones_that_share_a_base_are_opened_side_by_side(qemu, images, tmp_path):
    made = images("base")
    clones = {
        f"vd{letter}": qemu.create(tmp_path / f"c{letter}.qcow2", backing=made.active) for letter in "ab"
    }
    async with offline(qemu, clones) as vm:
        done = await asyncio.gather(vm.stream("vda"), vm.stream("vdb"))
        assert [one.chains for one in done] == [{"vda": (clones["vda"],)}, {"vdb": (clones["vdb"],)}]
    assert qemu.read(clones["vda"]) == qemu.read(clones["vdb"]) == made.content[-1]


async def test_raw_image_is_opened_as_raw_when_that_is_said(qemu, machine, tmp_path):
    raw = tmp_path / "disk.img"
    raw.write_bytes(content(1))
    async with offline(qemu, {"vda": raw}, formats={"vda": "raw"}) as vm:
        done = await vm.snapshot("n1")
        assert done.chains == {"vda": (f"{tmp_path}/disk.n1.qcow2", str(raw))}
    started_from(machine, done.active)
    async with offline(qemu, done.active) as vm:
        done = await vm.commit("vda")
        assert done.active == {"vda": str(raw)}
    assert raw.read_bytes() == overwritten(content(1), WRITE)


@pytest.mark.parametrize("operation", ["stream", "commit"])
async def test_what_was_merged_is_on_the_disk_when_the_daemon_is_killed(qemu, images, operation):
    made = images("base <- s1 <- s2")
    async with offline(qemu, {"vda": made.active}) as vm:
        if operation == "stream":
            done = await vm.stream("vda")
        else:
            done = await vm.commit("vda", top="s1", base="base")
        os.kill(vm.pid, signal.SIGKILL)
        await vm.wait_lost()
        with pytest.raises(LinkLost, match="by signal 9"):
            await vm.graph()
    assert qemu.read(done.chains["vda"][0]) == made.content[-1]


async def test_what_needs_a_guest_is_refused(qemu, images, tmp_path):
    made = images("base")
    before = listing(tmp_path)
    async with offline(qemu, {"vda": made.active}) as vm:
        for intent in (Save(f"{tmp_path}/state"), Restore(f"{tmp_path}/state"), Checkpoint("c1")):
            with pytest.raises(Unsupported, match="has no guest"):
                await vm.plan(intent)
        for refused in (vm.status, vm.cont, vm.stop):
            with pytest.raises(Unsupported, match="no guest"):
                await refused()
    assert listing(tmp_path) == before


async def test_images_that_are_only_looked_at_are_not_changed(qemu, images, tmp_path):
    made = images("base <- s1")
    async with offline(qemu, {"vda": made.active}, read_only=True) as vm:
        for intent in (Snapshot("n1"), Stream("vda"), Commit("vda"), Mirror("vda", "/x", ending="pivot")):
            with pytest.raises(Unsupported, match="only their headers are read"):
                await vm.plan(intent)
        assert (await vm.jobs.list(), await vm.jobs.interrupted()) == ((), ())
        assert daemons(tmp_path) == []


async def test_image_of_a_running_machine_is_refused_and_can_be_looked_at(qemu, images, machine):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)):
        with pytest.raises(ImageInUse) as caught:
            async with offline(qemu, {"vda": made.active}):
                pass
        assert caught.value.file == made.active
        async with offline(qemu, {"vda": made.active}, read_only=True) as vm:
            assert (await vm.graph()).chains() == {"vda": made.chain}


async def test_second_client_is_refused_until_the_first_has_ended(qemu, images, tmp_path):
    made = images("base <- s1")
    async with offline(qemu, {"vda": made.active}) as first:
        with pytest.raises(Refused):
            async with offline(qemu, {"vda": made.active}):
                pass
        assert (await first.stream("vda")).chains == {"vda": (made.active,)}
    async with offline(qemu, {"vda": made.active}) as second:
        assert (await second.graph()).chains() == {"vda": (made.active,)}
    assert daemons(tmp_path) == []


@pytest.mark.parametrize("wish", ["cancel", "detach"])
async def test_commit_that_is_cancelled_or_left_is_taken_back(qemu, images, leftovers, wish):
    """No job can be left to a daemon that ends with us."""
    made = images("base <- s1 <- s2")
    async with offline(qemu, {"vda": made.active}) as vm:
        cancel = anyio.Event()
        hooks = Hooks(**{wish: cancel}, progress=lambda _: cancel.set(), interval=0.01)
        with pytest.raises(Interrupted) as caught:
            await vm.commit("vda", top="s1", speed=64 * KIB, hooks=hooks)
        assert caught.value.invalid == (made.files[0],)
        for record in await vm.jobs.interrupted():  # it says so until the base is filled
            leftovers.allow(f"{record.directory}/{record.file_name}")
        assert (await vm.graph()).chains() == {"vda": made.chain}
        assert await vm.jobs.list() == ()
    assert qemu.read(made.active) == made.content[-1]


async def test_pivot_that_fails_leaves_the_root_where_it_is(qemu, images, small, tmp_path):
    made = images("base <- s1")
    room = small("1m")
    async with offline(qemu, {"vda": made.active}) as vm:
        with pytest.raises((qmpsnap.JobFailed, Refused)):
            await vm.mirror("vda", room / "copy.qcow2", ending="pivot")
        assert (await vm.graph()).chains() == {"vda": made.chain}
        assert listing(room) == []


async def test_missing_daemon_says_what_is_needed(images, tmp_path):
    made = images("base")
    with pytest.raises(ConnectFailed) as caught:
        async with qmpsnap.offline(vda=made.active, daemon=tmp_path / "none"):
            pass
    assert "qemu-storage-daemon" in caught.value.hint


CLIENT = """
import asyncio, sys, qmpsnap
async def main():
    async with qmpsnap.offline(vda=sys.argv[1], daemon=sys.argv[2]) as vm:
        say = lambda _: print("running", flush=True)
        await vm.commit("vda", top="s1", speed=64 << 10, hooks=qmpsnap.Hooks(progress=say, interval=0.01))
asyncio.run(main())
"""


async def test_killed_client_leaves_no_daemon_and_the_next_one_ends_its_commit(qemu, images, tmp_path):
    made = images("base <- s1 <- s2")
    daemon = qemu.directory / "qemu-storage-daemon"
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, made.active, daemon],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as client:
        assert client.stdout.readline() == b"running\n"
        assert len(daemons(tmp_path)) == 1
        client.kill()
        client.wait()
    wait_for(lambda: not daemons(tmp_path), "the daemon's end")
    async with offline(qemu, {"vda": made.active}) as vm:
        (record,) = await vm.jobs.interrupted()
        with contextlib.suppress(qmpsnap.QmpsnapError):
            await vm.jobs.wait(record.id)
        await vm.commit("vda", top="s1")
        assert await vm.jobs.interrupted() == ()
    assert qemu.read(made.active) == made.content[-1]
