"""Commits (E3: the six cases of T5, E4, E7): the base reads what the newest folded layer read."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, messages, throttled, traced
from integration.off import driven
from integration.states import fill
from integration.test_stream import CHAIN, files_of
from qmpsnap.errors import (
    Changed,
    Interrupted,
    InvalidTarget,
    NotFound,
    NotInChain,
    Refused,
    StillNeeded,
    Unsupported,
    WouldLose,
)
from qmpsnap.plan.intent import Commit
from qmpsnap.run.outcome import Hooks

FREES = """qmpsnap qmp blockdev-del '{"node-name": "vda-node"}'"""

CASES = {  # (top, base): what the chain becomes
    ("s3", "base"): "base <- s4",
    ("s2", "base"): "base <- s3 <- s4",
    ("s1", "base"): "base <- s2 <- s3 <- s4",
    ("s2", "s1"): "base <- s1 <- s3 <- s4",
    ("s3", "s2"): "base <- s1 <- s2 <- s4",
    ("s3", "s1"): "base <- s1 <- s4",  # the worked case
    (None, "s3"): "base <- s1 <- s2 <- s3",
    (None, "s1"): "base <- s1",
    (None, None): "base",
}
NAMES = CHAIN.split(" <- ")


@pytest.mark.parametrize("way", ["live", "off"])
@pytest.mark.parametrize(("case", "after"), CASES.items(), ids=[f"{top} into {base}" for top, base in CASES])
async def test_commit_folds_layers_into_the_base(qemu, images, machine, tmp_path, case, after, way):
    made = images(CHAIN)
    top, base = (case[0] or "s4"), (case[1] or "base")
    folded = NAMES[NAMES.index(base) + 1 : NAMES.index(top) + 1]
    async with driven(way, qemu, machine, {"vda": made.active}, ("vda", 0xA1, 6 * MIB, 512)) as vm:
        plan = await vm.plan(Commit("vda", top=case[0], base=case[1]))
        with traced(vm) as sent:
            done = await vm.run(plan)
        assert sent == messages(plan)
        assert done.chains == plan.chains_after == {"vda": files_of(made, after)}
        assert sorted(done.invalid) == [f"{tmp_path}/{name}.qcow2.invalid" for name in folded]
        assert done.active == ({} if case[0] else {"vda": f"{tmp_path}/{base}.qcow2"})
        # The node that the test named outlives its place in the chain.
        assert done.left == (() if case[0] or way == "off" else (FREES,))
        assert await vm.jobs.interrupted() == ()
    kept = {"base", "s1", "s2", "s3", "s4"} - set(folded)
    assert listing(tmp_path) == sorted(f"{name}.qcow2{'' if name in kept else '.invalid'}" for name in NAMES)
    chain = files_of(made, after)
    qemu.check_chain(*chain)
    for file in chain:
        name = Path(file).stem
        expected = content(1 + NAMES.index(top if name == base else name))
        assert qemu.read(file) == (
            overwritten(expected, (0xA1, 6 * MIB, 512)) if file == chain[0] else expected
        )


@pytest.mark.parametrize("top", [None, "s1"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_commit_works_however_the_disk_was_given(qemu, images, machine, way, top):
    made = images()
    with machine(*way("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.commit("vda", top=top)
    assert qemu.read(done.chains["vda"][0]) == content(3)
    qemu.check_chain(*done.chains["vda"])


async def test_commit_of_a_snapshot_goes_by_its_name(qemu, images, machine):
    made = images("base")
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            for name in ("one", "two", "three"):
                await vm.snapshot(name)
            done = await vm.commit("vda", top="two", base="one")
            assert [Path(file).name for file in done.chains["vda"]] == [
                "base.three.qcow2", "base.one.qcow2", "base.qcow2",
            ]  # fmt: skip
    qemu.check_chain(*done.chains["vda"])


async def test_commit_worked_case_by_two_commits(qemu, images, machine):
    made = images(CHAIN)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.commit("vda", top="s3", base="s2")
            done = await vm.commit("vda", top="s2", base="s1")
    assert done.chains == {"vda": files_of(made, "base <- s1 <- s4")}
    assert [qemu.read(file) for file in done.chains["vda"]] == [content(5), content(4), content(1)]


async def test_commit_keeps_the_overlay(qemu, images, machine, tmp_path, leftovers):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.commit("vda", keep_overlay=True)
            assert done.chains == {"vda": made.chain}
            assert sorted(done.invalid) == sorted(made.files[:2])
            (record,) = await vm.jobs.interrupted()
            assert sorted(record.invalid) == sorted(made.files[:2])
            running.write("vda", 0xA1, 6 * MIB, 512)
            leftovers.allow(f"{record.directory}/{record.file_name}")
    assert qemu.read(made.files[0]) == content(3)
    assert qemu.read(made.active) == overwritten(content(3), (0xA1, 6 * MIB, 512))
    qemu.check_chain(*made.chain)


async def test_commit_after_one_that_kept_the_overlay_clears_its_record(qemu, images, machine):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.commit("vda", keep_overlay=True)
            await vm.commit("vda")
            assert await vm.jobs.interrupted() == ()
    assert qemu.read(made.files[0]) == content(3)


@pytest.mark.parametrize("folded", ["remove", "keep"])
async def test_commit_treats_folded_files_as_asked(images, machine, tmp_path, folded):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.commit("vda", folded=folded)
    assert listing(tmp_path) == (
        ["base.qcow2"] if folded == "remove" else ["base.qcow2", "s1.qcow2", "s2.qcow2"]
    )
    assert sorted(done.invalid) == ([] if folded == "remove" else sorted(made.files[1:]))


async def test_commit_never_renames_onto_another_file(images, machine, tmp_path):
    made = images("base <- s1 <- s2")
    (tmp_path / "s1.qcow2.invalid").write_bytes(b"precious")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            done = await vm.commit("vda", top="s1")
    assert done.invalid == (f"{tmp_path}/s1.qcow2.invalid.2",)
    assert (tmp_path / "s1.qcow2.invalid").read_bytes() == b"precious"


@pytest.mark.parametrize("top", [None, "s2"])
async def test_commit_while_the_guest_writes(qemu, images, machine, top):
    made = images("base <- s1 <- s2 <- s3")
    writes = []

    def guest(progress):
        if len(writes) < 20:
            writes.append((0x21 + len(writes), 5 * MIB + 48 * KIB * len(writes), 64 * KIB))
            running.write("vda", *writes[-1])
        if len(writes) == 3:
            running.qmp("block-job-set-speed", device=progress.job.id, speed=MIB)

    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            hooks = Hooks(progress=guest, interval=0.05)
            done = await vm.commit("vda", top=top, speed=16 * KIB, hooks=hooks)
    assert len(writes) >= 3
    assert qemu.read(done.chains["vda"][0]) == overwritten(content(4), *writes)
    assert qemu.read(made.files[0]) == (overwritten(content(4), *writes) if top is None else content(3))


async def test_commit_keeps_relative_names_relative(qemu, images, machine, tmp_path):
    made = images("base <- s1 <- s2 <- s3", relative=True, folder="a")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.commit("vda", top="s2", base="base")
    assert qemu.chain(made.active)[0]["backing-filename"] == "base.qcow2"
    (tmp_path / "a").rename(tmp_path / "b")
    assert qemu.read(tmp_path / "b" / "s3.qcow2") == content(4)


async def test_commit_into_a_smaller_base_grows_it(qemu, machine, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", 4 * MIB)
    top = qemu.create(tmp_path / "top.qcow2", 8 * MIB, backing=base)
    with machine(*blockdev("vda", top)) as running:
        running.write("vda", 9, 7 * MIB, 512)
        async with running.connect() as vm:
            await vm.commit("vda")
    assert qemu.read(base) == overwritten(bytes(8 * MIB), (9, 7 * MIB, 512))


# -- nobody else's disk is broken (E7) -------------------------------------------------------------


@pytest.mark.parametrize("top", [None, "s1"])
@pytest.mark.parametrize("on", ["base", "s1"])
async def test_commit_refuses_while_an_image_of_another_machine_stands_on_it(
    qemu, images, machine, tmp_path, on, top
):
    made = images("base <- s1 <- s2")
    other = qemu.create(tmp_path / "other.qcow2", backing=f"{tmp_path}/{on}.qcow2")
    above = qemu.create(tmp_path / "above.qcow2", backing=other)
    before = listing(tmp_path)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(StillNeeded) as caught:
                await vm.commit("vda", top=top)
            assert (caught.value.by, sent, caught.value.exit_code) == ((above, other), [], 3)
            with pytest.raises(StillNeeded) as caught:
                await vm.commit("vda", top=top, invalidate=[other])
            assert caught.value.by == (above,)
            assert listing(tmp_path) == before
            done = await vm.commit("vda", top=top, invalidate=[other, above])
            assert {other, above} <= set(done.invalid)


async def test_commit_refuses_while_a_running_machine_stands_on_the_base(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    other = qemu.create(tmp_path / "other.qcow2", backing=made.files[0])
    with machine(*blockdev("vda", made.active)) as running, machine(*blockdev("vda", other)):
        async with running.connect() as vm:
            with pytest.raises(StillNeeded) as caught:
                await vm.commit("vda")
            assert caught.value.by == (other,)
    assert qemu.read(other) == content(1)


async def test_commit_looks_in_the_directories_that_it_is_told(qemu, images, machine, tmp_path):
    made = images("base <- s1", folder="a")
    (tmp_path / "b").mkdir()
    other = qemu.create(tmp_path / "b" / "other.qcow2", backing="../a/base.qcow2")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with pytest.raises(StillNeeded) as caught:
                await vm.commit("vda", look_in=[tmp_path / "b"])
            assert caught.value.by == (other,)


async def test_commit_refuses_while_another_disk_stands_on_the_base(qemu, images, machine, tmp_path):
    made = images("base <- s1", folder="a")
    (tmp_path / "b").mkdir()
    other = qemu.create(tmp_path / "b" / "other.qcow2", backing=made.files[0])
    with machine(*blockdev("vda", made.active), *blockdev("vdb", other)) as running:
        async with running.connect() as vm:
            with pytest.raises(StillNeeded) as caught:
                await vm.commit("vda")
            assert caught.value.by == ("disk vdb", other)


async def test_commit_refuses_to_lose_internal_snapshots_and_bitmaps(qemu, images, machine, tmp_path):
    made = images("base <- s1 <- s2")
    qemu.img("snapshot", "-q", "-c", "inside", made.files[1])
    qemu.img("bitmap", "--add", made.files[2], "changes")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(WouldLose) as caught:
                await vm.commit("vda")
            assert sent == []
            assert caught.value.what == (
                f"persistent bitmap 'changes' of {made.files[2]}",
                f"internal snapshot 'inside' of {made.files[1]}",
            )
            await vm.commit("vda", discard_internal=True)
    assert qemu.read(made.files[0]) == content(3)


async def test_commit_refuses_what_cannot_be(images, machine, tmp_path):
    made, single = images(), images("base", folder="b")
    cases = [
        (Commit("vda", top="base", base="s1"), NotInChain),
        (Commit("vda", top="s1", base="s1"), NotInChain),
        (Commit("vda", top="s9"), NotInChain),
        (Commit("vda", top="s1", keep_overlay=True), Unsupported),
        (Commit("vdb"), Unsupported),
        (Commit("vdz"), NotFound),
    ]
    with machine(*blockdev("vda", made.active), *throttled("vdb", single.active)) as running:
        before = listing(tmp_path), running.roots()
        async with running.connect() as vm:
            for intent, error in cases:
                with traced(vm) as sent, pytest.raises(Refused) as caught:
                    await vm.run(await vm.plan(intent))
                assert (type(caught.value), sent, caught.value.changed) == (error, [], Changed.NO)
        assert (listing(tmp_path), running.roots()) == before


async def test_what_could_be_taken_can_be_folded_however_long_its_name(qemu, images, machine, tmp_path):
    """What `.invalid` would make longer than 255 bytes is cut; a longer name is refused by that word."""
    made = images("base")
    name = "ü" * 124 + ".qcow2"
    assert len(name.encode()) == 254
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            for text in ("x" * 256, "x" * 300):
                with pytest.raises(InvalidTarget, match="too long") as caught:
                    await vm.snapshot("n1", files={"vda": f"{tmp_path}/{text}"})
                assert "shorter" in caught.value.hint
            await vm.snapshot("n1", files={"vda": f"{tmp_path}/{name}"})
            done = await vm.commit("vda")
    (folded,) = done.invalid
    assert Path(folded).name.endswith(".invalid")
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file() and one.suffix != ".log") == sorted(
        ["base.qcow2", Path(folded).name]
    )
    qemu.check_chain(made.active)


async def test_commit_that_is_cancelled_twice_leaves_one_record_and_the_third_none(
    images, machine, small, leftovers
):
    """The base's file system is full when the commit succeeds: its own record lies elsewhere then."""
    made = images("base <- s1 <- s2", folder=small("24m").name)
    place = Path(made.files[0]).parent
    with machine(*drive("vda", made.active)) as running:
        async with running.connect() as vm:
            for _ in range(2):
                cancel = anyio.Event()
                hooks = Hooks(cancel=cancel, progress=lambda _, cancel=cancel: cancel.set(), interval=0.01)
                with pytest.raises(Interrupted) as caught:
                    await vm.commit("vda", top="s1", speed=64 * KIB, hooks=hooks)
                assert "make the layers valid: qmpsnap commit vda --top" in caught.value.hint
                assert [set(one.invalid) for one in await vm.jobs.interrupted()] == [{made.files[0]}]
            filler = fill(place, 60 * KIB)
            await vm.commit("vda", top="s1", folded="keep")
            filler.unlink()
            assert await vm.jobs.interrupted() == ()


async def test_commit_says_which_filter_goes_with_the_layers(images, machine):
    made = images("base <- s1 <- s2")
    files = [{"driver": "file", "filename": file} for file in made.files]
    nodes = [
        {"driver": "qcow2", "node-name": "low", "file": files[0]},
        {"driver": "throttle", "node-name": "thr", "throttle-group": "tg", "file": "low"},
        {"driver": "qcow2", "node-name": "mid", "file": files[1], "backing": "thr"},
        {"driver": "qcow2", "node-name": "top", "file": files[2], "backing": "mid"},
    ]
    disk = [word for node in nodes for word in ("-blockdev", json.dumps(node))]
    disk += ["-device", "virtio-blk-pci,drive=top,id=vda"]
    with machine("-object", "throttle-group,id=tg", *disk) as running:
        async with running.connect() as vm:
            (before,) = (await vm.graph()).disks["vda"].filters
            done = await vm.commit("vda", top="s1")
            assert before.node == "thr"
            assert [one.node for one in (await vm.graph()).disks["vda"].filters] == []
            assert any("the filter thr (throttle)" in note for note in done.notes)
