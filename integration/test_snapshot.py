"""External snapshots (B1, B2, B5, B6): the moment's bytes, the chain, the headers, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB, SIZE, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, messages, traced
from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    Changed,
    CommandFailed,
    InvalidTarget,
    NotFound,
    Refused,
    TargetExists,
    Unsupported,
)
from qmpsnap.plan.intent import Snapshot


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


async def test_snapshot_covers_the_moment(qemu, images, machine, tmp_path, way):
    made = images("base <- s1")
    with machine(*way("vda", made.active)) as running:
        running.write("vda", 0xA1, 6 * MIB, 64 * KIB)
        async with running.connect() as vm:
            taken = await vm.snapshot("sn1")
            running.write("vda", 0xA2, 6 * MIB, 32 * KIB)
            overlay = f"{tmp_path}/base.sn1.qcow2"
            assert taken.chains == {"vda": (overlay, *made.chain)}
            assert taken.active == {"vda": overlay}
            assert 0 < taken.standstill_s < taken.elapsed_s
            assert (taken.left, taken.invalid, taken.notes) == ((), (), ())
    moment = overwritten(content(2), (0xA1, 6 * MIB, 64 * KIB))
    assert qemu.read(made.active) == moment
    assert qemu.read(overlay) == overwritten(moment, (0xA2, 6 * MIB, 32 * KIB))
    assert qemu.read(made.files[0]) == content(1)
    qemu.check_chain(overlay, *made.chain)


async def test_snapshot_of_a_raw_disk_records_the_format(qemu, images, machine, tmp_path):
    made = images("base", base_format="raw")
    with machine(*blockdev("vda", made.active, "raw")) as running:
        async with running.connect() as vm:
            taken = await vm.snapshot("sn1")
            running.write("vda", 1, 0, 512)
    assert Path(made.active).read_bytes() == content(1)
    qemu.check_chain(*taken.chains["vda"])


async def test_snapshot_takes_disks_at_one_instant_in_one_transaction(qemu, images, machine, tmp_path):
    made = {name: images("base", folder=name) for name in ("vda", "vdb", "vdc")}
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    arguments = [
        blockdev("vda", made["vda"].active),
        drive("vdb", made["vdb"].active),
        blockdev("vdc", made["vdc"].active),
    ]
    cdrom = ("-device", "ide-cd,id=cd0")
    with machine(*sum(arguments, ()), *cdrom) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("one", (), {"vdb": f"{elsewhere}/b.qcow2"}))
            with traced(vm) as sent:
                taken = await vm.run(plan)
            assert sent == messages(plan)
            assert [command for command, _ in sent] == ["transaction"]
            assert taken.chains == plan.chains_after
            assert taken.chains["vdb"] == (f"{elsewhere}/b.qcow2", made["vdb"].active)
            assert taken.notes == ("left out: cd0 (empty)",)
            assert await vm.jobs.interrupted() == ()
    for files in taken.chains.values():
        qemu.check_chain(*files)


async def test_snapshot_gives_the_overlay_owner_and_mode_of_the_layer(qemu, images, machine):
    made = images("base")
    Path(made.active).chmod(0o640)
    if os.geteuid() == 0:
        os.chown(made.active, 4711, 4712)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            taken = await vm.snapshot("sn1")
    of = [(status.st_uid, status.st_gid, status.st_mode) for status in map(os.stat, taken.chains["vda"])]
    assert of[0] == of[1]


@pytest.mark.parametrize("overlay", ["here.qcow2", "sub/there.qcow2"])
async def test_snapshot_of_a_disk_with_a_relative_name_starts_from_anywhere(
    qemu, images, machine, tmp_path, overlay
):
    made = images("base <- s1", relative=True, folder="disks")
    (tmp_path / "sub").mkdir()
    with machine(*blockdev("vda", "s1.qcow2"), cwd=tmp_path / "disks") as running:
        async with running.connect() as vm:
            taken = await vm.snapshot("sn1", files={"vda": tmp_path / overlay})
    assert taken.chains["vda"] == (f"{tmp_path}/{overlay}", *made.chain)
    assert qemu.read(tmp_path / overlay) == content(2)


@pytest.mark.one_qemu
async def test_snapshots_hundred_in_a_row_go_back_into_one(qemu, images, machine, tmp_path):
    made = images("base")
    data = content(1)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            for number in range(100):
                write = (number + 1, MIB + number * 4 * KIB, 8 * KIB)
                taken = await vm.snapshot(f"s{number:03}")
                running.write("vda", *write)
                data = overwritten(data, write)
            assert len(taken.chains["vda"]) == 101
            merged = await vm.commit("vda", folded="remove")
            assert merged.chains == {"vda": made.chain}
            await vm.snapshot("again")
    assert qemu.read(made.active) == data
    assert len(list((tmp_path / "base.qmpsnap").glob("moment-*"))) == 1
    assert len([name for name in listing(tmp_path) if name.endswith(".qcow2")]) == 2


# -- onto an overlay that the caller made ----------------------------------------------------------


async def test_snapshot_takes_an_overlay_that_fits(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    mine = qemu.create(tmp_path / "mine.qcow2", backing="s1.qcow2", options="cluster_size=4k")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            taken = await vm.snapshot("sn1", files={"vda": mine}, use_existing=True)
            running.write("vda", 7, 0, 512)
    assert taken.chains["vda"] == (mine, *made.chain)
    assert qemu.read(mine) == overwritten(content(2), (7, 0, 512))
    assert qemu.read(made.active) == content(2)
    assert qemu.chain(mine)[0]["backing-filename"] == "s1.qcow2"


UNFIT = {
    "another size": {"size": SIZE // 2, "backing": "s1.qcow2"},
    "another backing file": {"backing": "base.qcow2"},
    "no backing file": {},
    "another backing format": {"backing": "s1.qcow2", "backing_format": "raw"},
    "raw": {"form": "raw"},
}


@pytest.mark.parametrize("unfit", UNFIT)
async def test_snapshot_refuses_an_overlay_that_does_not_fit(qemu, images, machine, tmp_path, unfit):
    made = images("base <- s1")
    mine = qemu.create(tmp_path / "mine.qcow2", **UNFIT[unfit])
    before = Path(mine).read_bytes(), listing(tmp_path)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(InvalidTarget) as caught:
                await vm.snapshot("sn1", files={"vda": mine}, use_existing=True)
            assert (sent, caught.value.exit_code, caught.value.changed) == ([], 3, Changed.NO)
    assert (Path(mine).read_bytes(), listing(tmp_path)) == before


async def test_snapshot_refuses_an_overlay_that_has_data(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    mine = qemu.create(tmp_path / "mine.qcow2", backing="s1.qcow2")
    qemu.io(mine, "write -q -P 9 0 512")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            with traced(vm) as sent, pytest.raises(InvalidTarget, match="already has data"):
                await vm.snapshot("sn1", files={"vda": mine}, use_existing=True)
            assert sent == []
        assert running.reads("vda", content(2)[0], 0, 512)


# -- refused ---------------------------------------------------------------------------------------


def refusals(tmp_path, made):
    missing, precious = tmp_path / "missing" / "o.qcow2", tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    return {
        "exists": (Snapshot("n", ("vda",), {"vda": str(precious)}), TargetExists),
        "dangling symlink": (Snapshot("n", ("vda",), {"vda": str(tmp_path / "link")}), TargetExists),
        "no directory": (Snapshot("n", ("vda",), {"vda": str(missing)}), InvalidTarget),
        "third disk": (Snapshot("n", ("vda", "vdb", "vdc"), {"vdc": str(missing)}), InvalidTarget),
        "backing file": (Snapshot("n", ("vda",), {"vda": made["vda"].files[0]}), TargetExists),
        "another disk's layer": (Snapshot("n", ("vda",), {"vda": made["vdb"].active}), TargetExists),
        "disk twice": (Snapshot("n", ("vda", "/machine/peripheral/vda")), InvalidTarget),
        "one file": (
            Snapshot("n", ("vda", "vdb"), {"vda": f"{tmp_path}/o", "vdb": f"{tmp_path}/vda/../o"}),
            InvalidTarget,
        ),
        "unknown disk": (Snapshot("n", ("vdz",)), NotFound),
        "file of a disk not taken": (Snapshot("n", ("vda",), {"vdb": f"{tmp_path}/o"}), NotFound),
        "ambiguous disk": (Snapshot("n", ("base.qcow2",)), AmbiguousName),
        "empty drive": (Snapshot("n", ("cd0",)), Unsupported),
        "directory": (Snapshot("n", ("vda",), {"vda": str(tmp_path)}), TargetExists),
    }


async def test_snapshot_refuses_what_cannot_be_and_leaves_nothing(qemu, images, machine, tmp_path):
    made = {name: images("base <- s1", folder=name) for name in ("vda", "vdb", "vdc")}
    cases = refusals(tmp_path, made)
    with machine(
        *sum((blockdev(name, one.active) for name, one in made.items()), ()), "-device", "ide-cd,id=cd0"
    ) as running:
        before = listing(tmp_path), running.roots()
        async with running.connect() as vm:
            for case, (intent, error) in cases.items():
                with traced(vm) as sent, pytest.raises(Refused) as caught:
                    await vm.run(await vm.plan(intent))
                assert (case, type(caught.value), caught.value.exit_code) == (case, error, 3)
                assert (sent, caught.value.changed) == ([], Changed.NO)
            with traced(vm) as sent, pytest.raises(BadName):
                await vm.snapshot("a/b")
            assert sent == []
        assert (listing(tmp_path), running.roots()) == before
    assert (tmp_path / "precious").read_bytes() == b"precious"


async def test_snapshot_refuses_a_name_in_use(images, machine, tmp_path):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("sn1", files={"vda": tmp_path / "x.qcow2"})
            with pytest.raises(TargetExists, match="sn1"):
                await vm.snapshot("sn1")


# -- where QEMU's files are not ours ---------------------------------------------------------------


async def test_snapshot_lets_qemu_make_the_overlay_where_files_are_not_shared(
    qemu, images, machine, tmp_path
):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect(shared_fs=False) as vm:
            taken = await vm.snapshot("sn1")
            running.write("vda", 7, 0, 512)
    assert (
        taken.notes[0]
        == "QEMU creates the overlays, mode 644 less its umask: its files are not visible from here"
    )
    assert qemu.read(made.active) == content(2)
    qemu.check_chain(f"{tmp_path}/base.sn1.qcow2", *made.chain)


async def test_snapshot_asks_qemu_first_whether_the_name_is_free(images, machine, tmp_path):
    made = images("base")
    precious = tmp_path / "base.sn1.qcow2"
    precious.write_bytes(b"precious" * 100)
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect(shared_fs=False) as vm:
            with pytest.raises(TargetExists) as caught:
                await vm.snapshot("sn1")
            assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
            assert (await vm.graph()).chains() == {"vda": made.chain}
    assert precious.read_bytes() == b"precious" * 100


async def test_snapshot_says_when_qemu_finds_no_directory(images, machine, tmp_path):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect(shared_fs=False) as vm:
            with pytest.raises(CommandFailed, match="No such file or directory") as caught:
                await vm.snapshot("sn1", files={"vda": tmp_path / "missing" / "o.qcow2"})
            assert (caught.value.changed, caught.value.exit_code) == (Changed.NO, 4)
            assert (await vm.graph()).chains() == {"vda": made.chain}
