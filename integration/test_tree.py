"""The tree of a machine: images as their headers have them, with names as the records have them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from integration.known_images import KIB
from integration.machines import drive
from integration.off import offline
from integration.states import patterns
from qmpsnap.cli.list import _tree
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json

BLOCK = 64 * KIB


def backing_files(qemu, folder):
    """What each image is backed by, as qemu-img says."""
    found = {}
    for file in sorted(folder.glob("*.qcow2")):
        command = [qemu.directory / "qemu-img", "info", "-U", "--output=json", file]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        found[str(file)] = told.get("full-backing-filename")
    return found


async def grown(vm, running, base):
    """Three branches of five snapshots each; returns which file holds each snapshot, and its pattern."""
    running.qmp("cont")
    held, patterns = {}, {}
    for branch, at in (("a", ""), ("b", "a2"), ("c", "b3")):
        if at:
            await vm.revert(at)
        for number in range(1, 6):
            name = f"{branch}{number}"
            patterns[name] = len(patterns) + 1
            running.write("vda", patterns[name], 0, BLOCK)
            held[name] = (await vm.graph()).disks["vda"].active.file
            await vm.snapshot(name)
    assert held["a1"] == str(base)
    return held, patterns


def put_on(qemu, backing, file):
    """Give an overlay the new name of its backing file: QEMU finds that by its name alone."""
    qemu.img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, file)


def where(listing):
    return {name: image.file for image in listing.tree.images for name in image.holds}


def edges(tree):
    return {image.file: image.backing for image in tree.images}


async def test_tree_of_three_branches_with_records_and_without(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            held, patterns = await grown(vm, running, base)
            for name, below in (("clone", base), ("foreign", held["a4"])):
                qemu.create(tmp_path / f"{name}.qcow2", BLOCK, backing=below)
            listing = await vm.moments()
            tree, chain = listing.tree, (await vm.graph()).disks["vda"].files
            assert edges(tree) == backing_files(qemu, tmp_path)
            assert len(tree.images) == 20
            assert where(listing) == held
            assert [image.file for image in tree.images if image.active] == [chain[0]]
            assert {image.file for image in tree.images if image.in_chain} == {*chain}
            assert {image.file for image in tree.images if image.owner == "unknown"} == {
                f"{tmp_path}/clone.qcow2",
                f"{tmp_path}/foreign.qcow2",
            }
            assert tree.moments_reading(held["a2"]) == tuple(sorted({*held} - {"a1"}))
            assert tree.moments_reading(held["a4"]) == ("a4", "a5")
            assert max(map(len, _tree(tree))) <= max(80, len(f"images in {tmp_path}:"))
            records = tmp_path / "base.qmpsnap"
            for name in ("a1", "a5", "c5"):
                await vm.revert(name)
                running.read("vda", patterns[name], 0, BLOCK)
            assert where(await vm.moments()) == held

            damaged = next(records.glob("moment-b2-*"))
            text = damaged.read_text()
            damaged.write_text(text[: len(text) // 2])
            without = await vm.moments()
            assert edges(without.tree) == backing_files(qemu, tmp_path)
            assert [moment.name for moment in without.moments] == sorted({*held} - {"b2"})
            damaged.write_text(text)

            records.rename(tmp_path / "away")
            without = await vm.moments()
            assert edges(without.tree) == backing_files(qemu, tmp_path)
            assert (without.moments, where(without)) == ((), {})
            (tmp_path / "away").rename(records)
            assert where(await vm.moments()) == held


async def test_tree_names_what_is_another_machines_and_what_a_commit_left(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await vm.snapshot("one")
            one = (await vm.graph()).disks["vda"].active.file
            await vm.snapshot("two")
            theirs = [tmp_path / "theirs.qcow2", tmp_path / "theirs-top.qcow2"]
            for file, below in zip(theirs, (base, theirs[0]), strict=True):
                qemu.create(file, BLOCK, backing=below)
            own = next((tmp_path / "base.qmpsnap").glob("moment-two-*"))
            record = from_json(own.read_text())
            assert isinstance(record, MomentRecord)
            record = replace(
                record,
                id=f"{record.id}-theirs",
                name="their",
                overlays={"vda": str(theirs[1])},
                covered={"vda": str(theirs[0])},
                chains={"vda": (str(theirs[0]), str(base))},
            )
            (own.parent / record.file_name).write_text(to_json(record))
            listing = await vm.moments()
            assert [moment.name for moment in listing.moments] == ["one", "two"]
            found = {image.file: (image.owner, image.holds_other) for image in listing.tree.images}
            assert found[str(theirs[0])] == ("other", ("their",))
            assert found[str(theirs[1])] == ("other", ())
            assert found[str(base)] == ("machine", ())

            for file in theirs:
                file.unlink()
            await vm.commit("vda", top=one)
            listing = await vm.moments()
            marks = {Path(image.file).name: image.invalid for image in listing.tree.images}
            active = Path((await vm.graph()).disks["vda"].active.file).name
            assert marks == {"base.qcow2": False, f"{Path(one).name}.invalid": True, active: False}


async def test_two_machines_on_one_base_keep_their_trees_apart_while_both_take_snapshots(
    machine, qemu, tmp_path
):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    clones = [qemu.create(tmp_path / f"{name}.qcow2", BLOCK, backing=base) for name in ("left", "right")]
    with machine(*drive("vda", clones[0])) as one, machine(*drive("vda", clones[1])) as two:
        async with one.connect() as left, two.connect() as right:

            async def work(vm, side):
                for number in range(6):
                    await vm.snapshot(f"{side}{number}", files={"vda": tmp_path / f"{side}-{number}.qcow2"})
                    names = [moment.name for moment in (await vm.moments()).moments]
                    assert names == [f"{side}{before}" for before in range(number + 1)]

            async with anyio.create_task_group() as group:
                group.start_soon(work, left, "l")
                group.start_soon(work, right, "r")
            for vm, side, other in ((left, "l", "right"), (right, "r", "left")):
                tree = (await vm.moments()).tree
                assert edges(tree) == backing_files(qemu, tmp_path)
                own = {image.file for image in tree.images if image.owner == "machine"}
                assert own == {str(base), *(await vm.graph()).disks["vda"].files}
                assert tree.at(str(tmp_path / f"{other}.qcow2")).owner == "other"
                assert {name for image in tree.images for name in image.holds} == {
                    f"{side}{number}" for number in range(6)
                }


@pytest.mark.parametrize("with_symlink", [False, True], ids=["plain", "symlink"])
async def test_tree_finds_branches_that_lie_in_other_directories(machine, qemu, tmp_path, with_symlink):
    (tmp_path / "pool").mkdir()
    (tmp_path / "machine").mkdir()
    base = qemu.create(tmp_path / "pool" / "base.qcow2", BLOCK)
    folder = tmp_path / "machine"
    if with_symlink:
        folder = tmp_path / "link"
        folder.symlink_to(tmp_path / "machine")
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await vm.snapshot("one", files={"vda": folder / "s1.qcow2"})
            await vm.snapshot("two", files={"vda": folder / "s2.qcow2"})
            await vm.revert("one")
            tree = (await vm.moments()).tree
            assert len(tree.images) == 4
            assert [image.owner for image in tree.images] == ["machine"] * 4
            assert [image.missing for image in tree.images] == [False] * 4
            assert sorted(image.holds for image in tree.above(base)) == [(), (), ("two",)]
            assert {Path(image.file).resolve() for image in tree.images} == {
                path.resolve() for path in tmp_path.rglob("*.qcow2")
            }


async def test_tree_recognises_overlays_that_were_renamed_while_the_machine_was_off(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in ((1, "one"), (2, "two"), (3, "three")):
                running.write("vda", pattern, 0, BLOCK)
                await vm.snapshot(name)
            await vm.revert("one")
            running.write("vda", 4, 0, BLOCK)
            await vm.snapshot("four")
            active = (await vm.graph()).disks["vda"].active.file
    named = {"disk": active, "old": tmp_path / "base.three.qcow2", "held": tmp_path / "base.two.qcow2"}
    for name, file in named.items():
        Path(file).rename(tmp_path / f"{name}.qcow2")
    # QEMU finds a backing file by its name alone.
    qemu.img(
        "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", tmp_path / "held.qcow2", tmp_path / "old.qcow2"
    )
    with machine(*drive("vda", tmp_path / "disk.qcow2")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            listing = await vm.moments()
            assert [moment.name for moment in listing.moments] == ["one", "two", "three", "four"]
            assert Path(where(listing)["three"]).name == "held.qcow2"
            assert edges(listing.tree) == backing_files(qemu, tmp_path)
            assert {image.owner for image in listing.tree.images} == {"machine"}
            assert not any(image.missing for image in listing.tree.images)
            for pattern, name in ((3, "three"), (2, "two"), (4, "four"), (1, "one")):
                await vm.revert(name)
                running.read("vda", pattern, 0, BLOCK)


async def test_records_have_the_new_names_once_a_commit_has_changed_them(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in ((1, "one"), (2, "two"), (3, "three")):
                running.write("vda", pattern, 0, BLOCK)
                await vm.snapshot(name)
            active, held, below, _ = (await vm.graph()).disks["vda"].files
    Path(active).rename(tmp_path / "disk.qcow2")
    Path(held).rename(tmp_path / "held.qcow2")
    put_on(qemu, tmp_path / "held.qcow2", tmp_path / "disk.qcow2")
    with machine(*drive("vda", tmp_path / "disk.qcow2")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.commit(
                "vda", top="held.qcow2", base=below, folded="remove"
            )  # costs two, and moves three
            listing = await vm.moments()
            assert where(listing) == {"one": base, "three": below}
            await vm.revert("three")
            running.read("vda", 3, 0, BLOCK)
    assert "held.qcow2" not in "".join(path.read_text() for path in tmp_path.rglob("moment-*"))


async def test_tree_takes_no_copy_for_an_overlay_that_is_missing(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        async with running.connect() as vm:
            await vm.snapshot("one")
            active = Path((await vm.graph()).disks["vda"].active.file)
    (tmp_path / "disk.qcow2").write_bytes(active.read_bytes())
    active.rename(tmp_path / "aside")
    with machine(*drive("vda", tmp_path / "disk.qcow2")) as running:
        async with running.connect() as vm:
            listing = await vm.moments()
            assert listing.moments == ()
            assert listing.tree.at(base).holds_other == ("one",)


async def test_tree_is_the_same_when_the_machine_is_off(machine, qemu, tmp_path):
    base = qemu.create(tmp_path / "base.qcow2", BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("one")
            await vm.snapshot("two")
            await vm.checkpoint("saved", mode="in-place")
            await vm.snapshot("inner", inside=True)
            await vm.revert("one")
            qemu.create(tmp_path / "clone.qcow2", BLOCK, backing=base)
            running.qmp("stop")
            live = await vm.moments()
            active = (await vm.graph()).disks["vda"].active.file
    assert [moment.name for moment in live.moments] == ["one", "two", "saved", "inner"]
    assert [image.inside for image in live.tree.images if image.inside] == [("inner",)]
    for read_only in (True, False):
        async with offline(qemu, {"vda": active}, read_only=read_only) as vm:
            listing = await vm.moments()
        assert [line.stem for line in listing.tree.drawn()] == [line.stem for line in live.tree.drawn()]
        assert [replace(image, allocated=0) for image in listing.tree.images] == [
            replace(image, allocated=0) for image in live.tree.images
        ]
        assert [(one.name, one.kind, one.current, one.vm_state_file) for one in listing.moments] == [
            (one.name, one.kind, one.current, one.vm_state_file) for one in live.moments
        ]


async def branched(machine, qemu, place):
    """Three snapshots with overlays, two on one branch and one on another; returns the chain."""
    base = qemu.create(place / "base.qcow2", 4 * BLOCK)
    with machine(*drive("vda", base)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for pattern, name in ((1, "one"), (2, "two")):
                running.write("vda", pattern, pattern * BLOCK, BLOCK)
                await vm.snapshot(name)
            running.write("vda", 9, 0, BLOCK)
            await vm.revert("one")
            running.write("vda", 3, 3 * BLOCK, BLOCK)
            await vm.snapshot("three")
            running.write("vda", 8, 0, BLOCK)
            return [Path(file) for file in (await vm.graph()).disks["vda"].files]


READ = {"one": [0, 1, 0, 0], "two": [0, 1, 2, 0], "three": [0, 1, 0, 3]}


def exchanged(chain):
    """The files of the snapshot two and of the overlay that began there have each other's name."""
    held, tip = chain[-1].with_name("base.one.qcow2"), chain[-1].with_name("base.two.qcow2")
    aside = tip.rename(tip.with_name("aside"))
    held.rename(tip)
    aside.rename(held)
    return {held: tip}, set()


def renamed(chain):
    between = chain[1].rename(chain[1].with_name("mid.qcow2"))
    return {chain[0]: between}, set()


def moved(chain):
    """The directory has another name; the base image has no mark, so what it holds is missing."""
    place = chain[0].parent.rename(chain[0].parent.with_name("moved"))
    backing = {chain[0].name: chain[1].name, "base.two.qcow2": "base.one.qcow2"}
    backing |= dict.fromkeys((chain[1].name, "base.one.qcow2"), "base.qcow2")
    return {place / file: place / below for file, below in backing.items()}, {"one"}


@pytest.mark.parametrize(
    ("by_hand", "reverts"),
    [
        (exchanged, ()),
        (exchanged, ("two", "three")),
        (renamed, ()),
        (renamed, ("two", "three")),
        (moved, ()),
    ],
)
async def test_every_other_moment_stays_where_layers_were_renamed_and_one_is_deleted(
    machine, qemu, tmp_path, by_hand, reverts
):
    place = tmp_path / "images"
    place.mkdir()
    chain = await branched(machine, qemu, place)
    backing, missing = by_hand(chain)
    for file, below in backing.items():
        put_on(qemu, below, file)
    active = next(path for path in tmp_path.rglob(chain[0].name))
    read = dict(READ)
    with machine(*drive("vda", active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for name in ("one", "two", "three"):
                listing = await vm.moments()
                held = {moment.name: moment.held[0].file for moment in listing.moments}
                assert held.keys() == read.keys()
                for moment, file in held.items():
                    if moment not in missing:
                        assert patterns(qemu, file, BLOCK) == read[moment], moment
                if name in reverts:
                    await vm.revert(name)
                    for block, pattern in enumerate(read[name]):
                        running.read("vda", pattern, block * BLOCK, BLOCK)
                await vm.delete(name)
                del read[name]
    tip = "base.one.qcow2" if by_hand is exchanged else "base.two.qcow2"
    assert patterns(qemu, active.with_name(tip), BLOCK) == [9, 1, 2, 0]
    for file, below in backing_files(qemu, active.parent).items():
        assert below is None or Path(below).exists(), (file, below)
