"""No moment is hidden: whatever leaves a chain, each is listed where it lies, and can be gone back to."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import anyio
import pytest

from integration.known_images import KIB
from integration.machines import drive
from qmpsnap.errors import Busy, CommandFailed, Detached, NotInChain, WouldLose
from qmpsnap.plan.intent import Mirror, Stream
from qmpsnap.run.outcome import Hooks

BLOCK = 64 * KIB
NAMES = ("one", "two", "three")


async def taken(vm, running, disks=("vda",)):
    """Three snapshots of disks that read another pattern at each; afterwards they read a fourth."""
    running.qmp("cont")
    for pattern, name in enumerate(NAMES, 1):
        for disk in disks:
            running.write(disk, pattern, 0, BLOCK)
        await vm.snapshot(name)
    for disk in disks:
        running.write(disk, 4, 0, BLOCK)


async def demand_all(vm, running, disks=("vda",), leave=(), *, names=NAMES):
    """Each is listed with the file that holds it; going back to it gives the bytes that it had."""
    listed = {moment.name: moment for moment in (await vm.moments()).moments}
    assert [*listed] == list(names)
    assert not any(part.invalid for moment in listed.values() for part in moment.held)
    assert all(Path(part.file).exists() for moment in listed.values() for part in moment.held)
    for name in reversed(names):
        await vm.revert(name, leave=leave)
        for disk in disks:
            running.read(disk, NAMES.index(name) + 1, 0, BLOCK)
    assert [moment.name for moment in (await vm.moments()).moments] == list(names)


async def streamed_away(vm, folder):
    await vm.stream("vda")


async def streamed_to_the_base(vm, folder):
    await vm.stream("vda", base=f"{folder}/base.qcow2")


async def streamed_in_the_middle(vm, folder):
    await vm.stream("vda", into="two", base=f"{folder}/base.qcow2")


async def mirrored(vm, folder):
    (folder / "new").mkdir()
    await vm.mirror("vda", f"{folder}/new/copy.qcow2", ending="pivot")


async def mirrored_twice(vm, folder):
    await mirrored(vm, folder)
    await vm.mirror("vda", f"{folder}/again.raw", ending="pivot", format="raw")


async def top_mirrored(vm, folder):
    await vm.mirror("vda", f"{folder}/copy.qcow2", ending="pivot", sync="top")


async def streamed_then_mirrored(vm, folder):
    await vm.stream("vda")
    await mirrored(vm, folder)


async def stream_of_another_client(vm, **base):
    top = (await vm.graph()).disks["vda"].active.node
    await vm.execute("block-stream", {"job-id": "another", "device": top, **base})
    with anyio.fail_after(60):
        while any(job.id == "another" for job in await vm.jobs.list()):
            await anyio.sleep(0.05)


async def streamed_away_by_another_client(vm, folder):
    await stream_of_another_client(vm)


async def streamed_to_the_base_by_another_client(vm, folder):
    await stream_of_another_client(vm, **{"base-node": (await vm.graph()).disks["vda"].base.node})


WAYS = [
    streamed_away, streamed_to_the_base, streamed_in_the_middle, mirrored, mirrored_twice, top_mirrored,
    streamed_then_mirrored, streamed_away_by_another_client, streamed_to_the_base_by_another_client,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_moments_stay_when_layers_leave_and_after_the_next_start(machine, qemu, tmp_path, way):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await taken(vm, running)
            await way(vm, tmp_path)
            active = (await vm.graph()).disks["vda"].active
            running.read("vda", 4, 0, BLOCK)
            assert [moment.name for moment in (await vm.moments()).moments] == [*NAMES]
    with machine(*drive("vda", active.file, active.format)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await demand_all(vm, running)


@pytest.mark.parametrize("way", [streamed_away, streamed_to_the_base, mirrored], ids=lambda way: way.__name__)
async def test_vm_state_is_found_and_goes_when_layers_have_left(machine, qemu, tmp_path, way):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in ((1, "one"), (2, "two")):
                running.write("vda", pattern, 0, BLOCK)
                await vm.checkpoint(name, mode="in-place")
            await way(vm, tmp_path)
            moments = await vm.moments()
            assert moments.unneeded == ()
            states = [Path(moment.vm_state_file) for moment in moments.moments]
            assert [state.exists() for state in states] == [True, True]
            await vm.revert("one")
            running.read("vda", 1, 0, BLOCK)
            await vm.delete("two")
            assert [state.exists() for state in states] == [True, False]
            assert [moment.name for moment in (await vm.moments()).moments] == ["one"]


async def test_moments_of_a_disk_stay_when_the_first_disk_is_gone_or_comes_later(machine, qemu, tmp_path):
    disks = {name: qemu.create(tmp_path / f"base-{name}.qcow2", BLOCK) for name in ("vda", "vdb")}
    with machine(*(word for name, file in disks.items() for word in drive(name, file))) as running:
        async with running.connect() as vm:
            await taken(vm, running, ("vda", "vdb"))
            active = {name: disk.active.file for name, disk in (await vm.graph()).disks.items()}
    with machine(*drive("vdb", active["vdb"])) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await demand_all(vm, running, ("vdb",), ("vda",))
            active["vdb"] = (await vm.graph()).disks["vdb"].active.file
            await vm.snapshot("alone")
            active["vdb"] = (await vm.graph()).disks["vdb"].active.file
    more = qemu.create(tmp_path / "more.qcow2", BLOCK)
    order = {"vdc": more, "vdb": active["vdb"], "vda": active["vda"]}
    with machine(*(word for name, file in order.items() for word in drive(name, file))) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            listed = [moment.name for moment in (await vm.moments()).moments]
            assert listed == [*NAMES, "alone"]
            for name in NAMES:
                await vm.revert(name, leave=("vdc",))
                for disk in ("vda", "vdb"):
                    running.read(disk, NAMES.index(name) + 1, 0, BLOCK)


async def test_moments_stay_when_overlays_of_another_client_are_streamed_away(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in enumerate(NAMES, 1):
                running.write("vda", pattern, 0, BLOCK)
                await vm.snapshot(name)
                words = {"snapshot-file": f"{tmp_path}/x{pattern}.qcow2", "snapshot-node-name": f"x{pattern}"}
                node = (await vm.graph()).disks["vda"].active.node
                await vm.execute("blockdev-snapshot-sync", {"node-name": node, **words})
            running.write("vda", 4, 0, BLOCK)
            await vm.stream("vda")
            assert len((await vm.graph()).disks["vda"].layers) == 1
            await demand_all(vm, running)


async def test_moments_are_found_beside_an_overlay_in_another_directory(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    (tmp_path / "other").mkdir()
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            running.write("vda", 1, 0, BLOCK)
            await vm.snapshot("one", files={"vda": tmp_path / "other" / "x.qcow2"})
            await stream_of_another_client(vm)
            await vm.snapshot("two")
            assert [moment.name for moment in (await vm.moments()).moments] == ["one", "two"]
            await vm.revert("one")
            running.read("vda", 1, 0, BLOCK)


async def test_layer_that_a_stream_made_whole_is_not_given_up(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await taken(vm, running)
            await vm.stream("vda")
            with pytest.raises(WouldLose, match="is no overlay any more"):
                await vm.revert("one", discard=True)


async def test_records_and_links_go_with_the_last_moment(machine, qemu, tmp_path):
    disks = {name: qemu.create(tmp_path / f"base-{name}.qcow2", BLOCK) for name in ("vda", "vdb")}
    with machine(*(word for name, file in disks.items() for word in drive(name, file))) as running:
        async with running.connect() as vm:
            await vm.snapshot("one")
            assert len([*tmp_path.glob("*.qmpsnap")]) == 2
            for disk in disks:
                await vm.commit(disk, folded="remove")
            assert [*tmp_path.glob("*.qmpsnap")] == []


def run_line(qemu, line):
    path = f"{qemu.directory}:{os.environ['PATH']}"
    subprocess.run(line, shell=True, check=True, env={**os.environ, "PATH": path})


@pytest.mark.parametrize("with_memory", [True, False], ids=["checkpoint", "disks"])
async def test_snapshot_inside_a_layer_that_was_left_is_reached_as_the_hint_says(
    machine, qemu, tmp_path, with_memory
):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("one")
            left = (await vm.graph()).disks["vda"].active.file
            running.write("vda", 5, 0, BLOCK)
            if with_memory:
                await vm.checkpoint("inner", mode="internal")
            else:
                await vm.snapshot("inner", inside=True)
            running.write("vda", 6, 0, BLOCK)
            await vm.revert("one")
            listed = {moment.name: moment for moment in (await vm.moments()).moments}
            (part,) = listed["inner"].held
            assert (part.disk, part.file, part.in_chain) == ("vda", left, False)
            assert bool(listed["inner"].vm_state_size) == with_memory
            with pytest.raises(NotInChain, match="which this machine has left") as caught:
                await vm.revert("inner")
            subprocess.run(
                caught.value.hint.partition(": ")[2],
                shell=True,
                check=True,
                env={**os.environ, "PATH": f"{qemu.directory}:{os.environ['PATH']}"},
            )
            with pytest.raises(NotInChain, match="which this machine has left") as caught:
                await vm.delete("inner")
            remove = caught.value.hint.partition(": ")[2]
    with machine(*drive("vda", f"{left}.copy")) as running:
        async with running.connect() as vm:
            if with_memory:
                await vm.revert("inner")
            running.read("vda", 5, 0, BLOCK)
    subprocess.run(
        remove, shell=True, check=True, env={**os.environ, "PATH": f"{qemu.directory}:{os.environ['PATH']}"}
    )
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            assert "inner" not in [moment.name for moment in (await vm.moments()).moments]


@pytest.mark.parametrize("op", ["stream", "mirror"])
async def test_moments_stay_when_a_later_client_ends_the_operation(machine, qemu, tmp_path, op):
    base = qemu.create(tmp_path / "base.qcow2", 4 * BLOCK)
    (tmp_path / "new").mkdir()
    intents = {
        "stream": Stream("vda", speed=16 * KIB),
        "mirror": Mirror("vda", f"{tmp_path}/new/copy.qcow2", ending="pivot", speed=16 * KIB),
    }
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await taken(vm, running)
            running.write("vda", 4, BLOCK, 3 * BLOCK)
            await vm.snapshot("four")
            detach = anyio.Event()
            detach.set()
            with pytest.raises(Detached) as caught:
                await vm.run(await vm.plan(intents[op]), Hooks(detach=detach))
        async with running.connect() as vm:
            with contextlib.suppress(Busy, CommandFailed):  # it may have copied everything by now
                await vm.jobs.set_speed(caught.value.job_id, 0)
            await vm.jobs.wait(caught.value.job_id)
            assert len((await vm.graph()).disks["vda"].layers) == 1
            assert [moment.name for moment in (await vm.moments()).moments] == [*NAMES, "four"]
            await vm.revert("one")
            running.read("vda", 1, 0, BLOCK)
