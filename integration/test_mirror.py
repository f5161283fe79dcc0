"""Mirrors (F1): the copy reads what the disk read, and what was written meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.known_images import KIB, MIB, SIZE, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, messages, throttled, traced
from qmpsnap.errors import (
    BadArgument,
    Changed,
    InvalidTarget,
    NotFound,
    Refused,
    TargetExists,
    Unsupported,
    WouldLose,
)
from qmpsnap.plan.intent import Mirror
from qmpsnap.run.outcome import Hooks

FREES = """qmpsnap qmp blockdev-del '{"node-name": "vda-node"}'"""

COPIES = [
    (sync, form, ending)
    for sync in ("full", "top", "none")
    for form in ("qcow2", "raw")
    for ending in ("pivot", "finish")
    if (form == "qcow2" or sync == "full") and (sync, ending) != ("none", "finish")
]
AFTER = (0xA1, 6 * MIB, 512)


@pytest.mark.parametrize(("sync", "form", "ending"), COPIES)
async def test_mirror_copies(qemu, images, machine, tmp_path, sync, form, ending):
    made = images("base <- s1 <- s2")
    target = f"{tmp_path}/copy.{form}"
    pivot = ending == "pivot"
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Mirror("vda", target, ending=ending, sync=sync, format=form))
            with traced(vm) as sent:
                done = await vm.run(plan)
            assert sent == messages(plan)
            assert done.chains == plan.chains_after
            assert done.active == ({"vda": target} if pivot else {})
            # The node that the test named is the source's: it stays, if nothing reads through it.
            assert done.left == ((FREES,) if pivot and sync != "none" else ())
            assert await vm.jobs.interrupted() == ()
            running.write("vda", *AFTER)
    below = {"full": (), "top": made.chain[1:], "none": made.chain}[sync]
    assert done.chains == {"vda": (target, *below) if pivot else made.chain}
    assert qemu.read(target, form) == (overwritten(content(3), AFTER) if pivot else content(3))
    assert qemu.read(made.active) == (content(3) if pivot else overwritten(content(3), AFTER))
    assert qemu.read(made.files[1]) == content(2)
    qemu.check_chain(target, *below, form=form)
    qemu.check_chain(*made.chain)
    assert listing(tmp_path) == sorted(["base.qcow2", "s1.qcow2", "s2.qcow2", f"copy.{form}"])


@pytest.mark.parametrize("ending", ["pivot", "finish"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_mirror_works_however_the_disk_was_given(qemu, images, machine, tmp_path, way, ending):
    made = images()
    target = f"{tmp_path}/copy.qcow2"
    with machine(*way("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.mirror("vda", target, ending=ending)
            running.write("vda", *AFTER)
            assert done.chains == {"vda": (target,) if ending == "pivot" else made.chain}
    assert qemu.read(target) == (overwritten(content(3), AFTER) if ending == "pivot" else content(3))


async def test_mirror_again_and_again(qemu, images, machine, tmp_path):
    made = images("base", base_format="raw")
    data = content(1)
    with machine(*drive("vda", made.active, "raw")) as running:
        async with running.connect() as vm:
            for number in range(5):
                form = "raw" if number % 2 else "qcow2"
                done = await vm.mirror("vda", tmp_path / f"m{number}.{form}", ending="pivot", format=form)
                write = (number + 1, 5 * MIB + number * 4 * KIB, 8 * KIB)
                running.write("vda", *write)
                data = overwritten(data, write)
                await vm.snapshot(f"s{number}")
                done = await vm.commit("vda", folded="remove")
                assert done.chains == {"vda": (f"{tmp_path}/m{number}.{form}",)}
    assert qemu.read(f"{tmp_path}/m4.qcow2") == data


@pytest.mark.parametrize("ending", ["pivot", "finish"])
async def test_mirror_while_the_guest_writes(qemu, images, machine, tmp_path, ending):
    made = images()
    writes = []

    def guest(progress):
        if len(writes) < 20:
            writes.append((0x21 + len(writes), 5 * MIB + 48 * KIB * len(writes), 64 * KIB))
            running.write("vda", *writes[-1])
        if len(writes) == 3:
            running.qmp("block-job-set-speed", device=progress.job.id, speed=4 * MIB)

    target = f"{tmp_path}/copy.qcow2"
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            hooks = Hooks(progress=guest, interval=0.05)
            await vm.mirror("vda", target, ending=ending, speed=16 * KIB, hooks=hooks)
    assert len(writes) >= 3
    # The last writes may have come after the moment that the copy holds.
    first = len(writes) if ending == "pivot" else 3
    assert qemu.read(target) in [
        overwritten(content(3), *writes[:count]) for count in range(first, len(writes) + 1)
    ]


async def test_mirror_tells_of_the_pivot_before_it_returns(images, machine, tmp_path):
    made = images()
    told = []
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.mirror("vda", tmp_path / "t", ending="pivot", hooks=Hooks(on_pivot=told.append))
            assert told == [{"vda": f"{tmp_path}/t"}]


async def test_mirror_gives_the_copy_owner_and_mode_of_the_source(images, machine, tmp_path):
    made = images()
    Path(made.active).chmod(0o640)
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.mirror("vda", tmp_path / "t", ending="finish")
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o640


# -- onto an image that the caller made ------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pivot", "finish"])
@pytest.mark.parametrize(("sync", "form"), [("full", "qcow2"), ("full", "raw"), ("top", "qcow2")])
async def test_mirror_takes_an_image_that_fits(qemu, images, machine, tmp_path, sync, form, ending):
    made = images("base <- s1 <- s2")
    mine = qemu.create(tmp_path / "mine", form=form, backing=made.files[1] if sync == "top" else None)
    if sync == "full":
        qemu.io(mine, f"write -q -P 99 0 {SIZE}", form=form)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.mirror("vda", mine, ending=ending, sync=sync, format=form, use_existing=True)
            running.write("vda", *AFTER)
    below = made.chain[1:] if sync == "top" else ()
    assert done.chains["vda"] == ((mine, *below) if ending == "pivot" else made.chain)
    assert qemu.read(mine, form) == (overwritten(content(3), AFTER) if ending == "pivot" else content(3))
    qemu.check_chain(mine, *below, form=form)


UNFIT = {
    "another size": ({"size": SIZE // 2}, "full"),
    "another format": ({"form": "raw"}, "full"),
    "a backing file with sync full": ({"backing": "s1.qcow2"}, "full"),
    "no backing file with sync top": ({}, "top"),
    "another backing file": ({"backing": "base.qcow2"}, "top"),
}


@pytest.mark.parametrize("unfit", UNFIT)
async def test_mirror_refuses_an_image_that_does_not_fit(qemu, images, machine, tmp_path, unfit):
    made = images("base <- s1 <- s2")
    options, sync = UNFIT[unfit]
    mine = qemu.create(tmp_path / "mine", **options)
    before = Path(mine).read_bytes(), listing(tmp_path)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(InvalidTarget) as caught:
                await vm.mirror("vda", mine, ending="pivot", sync=sync, use_existing=True)
            assert (sent, caught.value.changed) == ([], Changed.NO)
    assert (Path(mine).read_bytes(), listing(tmp_path)) == before


# -- refused ---------------------------------------------------------------------------------------


async def test_mirror_refuses_what_cannot_be_and_leaves_nothing(qemu, images, machine, tmp_path):
    made, other = images("base <- s1", folder="a"), images("base", folder="b")
    qemu.img("snapshot", "-q", "-c", "inside", other.active)
    target = f"{tmp_path}/t"
    (tmp_path / "precious").write_bytes(b"precious")
    cases = [
        (Mirror("vda", f"{tmp_path}/precious", ending="pivot"), TargetExists),
        (Mirror("vda", made.files[0], ending="pivot", use_existing=True), TargetExists),
        (Mirror("vda", other.active, ending="finish", use_existing=True), TargetExists),
        (Mirror("vda", f"{tmp_path}/missing/t", ending="pivot"), InvalidTarget),
        (Mirror("vda", target, ending="finish", sync="none"), Unsupported),
        (Mirror("vda", target, ending="pivot", sync="top", format="raw"), Unsupported),
        (Mirror("vdb", target, ending="pivot"), WouldLose),
        (Mirror("vdz", target, ending="pivot"), NotFound),
    ]
    with machine(*blockdev("vda", made.active), *throttled("vdb", other.active)) as running:
        before = listing(tmp_path), running.roots()
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(BadArgument, match="give 'raw' or 'qcow2'"):
                await vm.mirror("vda", target, ending="pivot", format="vmdk")
            assert sent == []
            for intent, error in cases:
                with traced(vm) as sent, pytest.raises(Refused) as caught:
                    await vm.run(await vm.plan(intent))
                assert (intent, type(caught.value), sent, caught.value.changed) == (
                    intent,
                    error,
                    [],
                    Changed.NO,
                )
        assert (listing(tmp_path), running.roots()) == before
    assert (tmp_path / "precious").read_bytes() == b"precious"


# -- where QEMU's files are not ours ---------------------------------------------------------------


async def test_mirror_lets_qemu_make_the_copy_where_files_are_not_shared(qemu, images, machine, tmp_path):
    made = images()
    target = f"{tmp_path}/copy.qcow2"
    with machine(*drive("vda", made.active)) as running:
        async with running.connect(shared_fs=False) as vm:
            done = await vm.mirror("vda", target, ending="pivot")
            with pytest.raises(TargetExists):
                await vm.mirror("vda", made.active, ending="pivot")
            assert done.chains == (await vm.graph()).chains() == {"vda": (target,)}
    assert qemu.read(target) == qemu.read(made.active) == content(3)
