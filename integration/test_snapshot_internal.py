"""Internal snapshots (C1): their bytes, several disks at one instant, list and deletion, refusals."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from integration.cli import Cli
from integration.harness import stepped
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, messages, traced
from integration.states import refuses
from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    Busy,
    Changed,
    LinkLost,
    NotFound,
    NotInChain,
    Refused,
    TargetExists,
    Unsupported,
)
from qmpsnap.plan.intent import Checkpoint, Delete, Revert, Snapshot


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


def names(graph, disk="vda"):
    return [one.name for one in graph.disks[disk].active.snapshots]


async def test_internal_keeps_the_moment_inside_the_image(qemu, images, machine, way, tmp_path):
    made = images("base <- s1")
    before = listing(tmp_path)
    with machine(*way("vda", made.active)) as running:
        running.write("vda", 0xA1, 6 * MIB, 64 * KIB)
        async with running.connect() as vm:
            taken = await vm.snapshot("i1", inside=True)
            running.write("vda", 0xA2, 6 * MIB, 32 * KIB)
            assert (taken.op, taken.chains, dict(taken.active)) == (
                "snapshot-internal",
                {"vda": made.chain},
                {},
            )
            assert 0 < taken.standstill_s < taken.elapsed_s
            assert (taken.left, taken.invalid, taken.notes) == ((), (), ())
            assert names(await vm.graph()) == ["i1"]
    moment = overwritten(content(2), (0xA1, 6 * MIB, 64 * KIB))
    assert qemu.read_inside(made.active, "i1") == moment
    assert qemu.read(made.active) == overwritten(moment, (0xA2, 6 * MIB, 32 * KIB))
    assert qemu.read(made.files[0]) == content(1)
    qemu.check_chain(*made.chain)
    assert listing(tmp_path) == before


async def test_internal_goes_away_and_the_others_read_what_they_read(qemu, images, machine, way):
    made = images("base")
    moments, data = {}, content(1)
    with machine(*way("vda", made.active)) as running:
        async with running.connect() as vm:
            for number in range(4):
                await vm.snapshot(f"i{number}", inside=True)
                moments[f"i{number}"] = data
                write = (number + 1, number * MIB, MIB + 4 * KIB)
                running.write("vda", *write)
                data = overwritten(data, write)
            for name in ("i1", "i3"):
                plan = await vm.plan(Delete(name))
                with traced(vm) as sent:
                    gone = await vm.run(plan)
                assert sent == messages(plan)
                assert (gone.op, gone.chains) == ("delete", {"vda": made.chain})
                del moments[name]
            assert names(await vm.graph()) == ["i0", "i2"]
            with pytest.raises(NotFound, match="'i1'"):
                await vm.delete("i1")
    assert qemu.inside(made.active) == list(moments)
    for name, wanted in moments.items():
        assert qemu.read_inside(made.active, name) == wanted
    assert qemu.read(made.active) == data
    qemu.check(made.active)


async def test_internal_takes_disks_at_one_instant_in_one_transaction(qemu, images, machine):
    made = {name: images("base <- s1", folder=name) for name in ("vda", "vdb", "vdc")}
    disks = (
        *blockdev("vda", made["vda"].active),
        *drive("vdb", made["vdb"].active),
        *blockdev("vdc", made["vdc"].active),
    )
    with machine(*disks, "-device", "ide-cd,id=cd0") as running:
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("one", inside=True))
            with traced(vm) as sent:
                taken = await vm.run(plan)
            assert sent == messages(plan)
            assert [command for command, _ in sent] == ["transaction"]
            assert taken.notes == ("left out: cd0 (empty)",)
            found = await vm.graph()
            assert plan.after is not None
            for disk in made:
                assert names(found, disk) == names(plan.after, disk) == ["one"]
            (moment,) = (await vm.moments()).moments
            assert set(moment.disks) == {"vda", "vdb", "vdc"}
            await vm.delete("one")
            assert (await vm.moments()).moments == ()


async def test_internal_is_on_every_disk_or_on_none(images, machine):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", two.active)) as running:
        async with running.connect() as vm:
            plan = await vm.plan(Snapshot("i1", inside=True))
            running.qmp("blockdev-snapshot-internal-sync", device="vdb-node", name="other")
            # The plan is stale: QEMU is not asked.
            with traced(vm) as sent, pytest.raises(Exception, match="internal snapshots") as caught:
                await vm.run(plan)
            assert (sent, caught.value.changed) == ([], Changed.NO)
            # QEMU itself takes back the first when it refuses the second.
            actions = [
                {"type": "blockdev-snapshot-internal-sync", "data": {"device": node, "name": "other"}}
                for node in ("vda-node", "vdb-node")
            ]
            with pytest.raises(Exception, match="already exists"):
                running.qmp("transaction", actions=actions)
            assert names(await vm.graph()) == []


async def test_internal_with_vm_state_is_listed_and_goes_from_every_disk(images, machine):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", two.active)) as running:
        running.qmp.hmp("savevm theirs")
        async with running.connect() as vm:
            (moment,) = (await vm.moments()).moments
            assert (moment.name, moment.disks) == ("theirs", ("vda", "vdb"))
            sizes = [part.vm_state_size > 0 for part in moment.held]
            assert sizes == [True, False]
            gone = await vm.delete("theirs")
            assert gone.notes == (f"its VM state of {moment.vm_state_size} bytes is deleted too",)
            assert (await vm.moments()).moments == ()


# -- the list --------------------------------------------------------------------------------------


async def test_list_has_both_kinds_with_their_times_and_what_is_current(images, machine, tmp_path):
    made = images("base")
    began = time.time()
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("in1", inside=True)
            await vm.snapshot("ex1")
            await vm.snapshot("in2", inside=True)
            await vm.snapshot("ex2")
            found = await vm.moments()
        cli = Cli(running)
        text, told = cli("list").out, cli("list", "--json").json
    assert [(one.name, one.kind, one.current) for one in found.moments] == [
        ("in1", "internal", False),
        ("ex1", "external", False),
        ("in2", "internal", False),
        ("ex2", "external", True),
    ]
    times = [datetime.fromisoformat(one.created).timestamp() for one in found.moments]
    assert began <= times[0] <= times[-1] <= time.time()
    overlay = f"{tmp_path}/base.ex1.qcow2"
    parts = [(part.file, part.overlay, part.in_chain) for one in found.moments for part in one.held]
    assert parts == [
        (made.active, "", False),
        (made.active, overlay, True),
        (overlay, "", False),
        (overlay, f"{tmp_path}/base.ex2.qcow2", True),
    ]
    assert found.current == told["current"] == {"vda": "ex2"}
    assert [one["name"] for one in told["moments"]] == ["in1", "ex1", "in2", "ex2"]
    table, tree = text.split("\n\n")
    rows = [line for line in table.splitlines() if not line.startswith(" ")]  # the last column is broken
    assert [row.split()[0] for row in rows] == ["NAME", "in1", "ex1", "in2", "ex2", "vda:"]
    assert [line.split()[:2] for line in tree.splitlines()[2:]] == [
        ["o", "ex1"],
        ["o", "ex2"],
        ["*", "(vda)"],
    ]


async def test_list_shows_internal_ones_alone_where_files_are_not_shared(images, machine):
    with machine(*blockdev("vda", images("base").active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("ex1")
        async with running.connect(shared_fs=False) as vm:
            await vm.snapshot("in1", inside=True)
            found = await vm.moments()
    assert ([one.name for one in found.moments], found.records_seen) == (["in1"], False)


# -- refused ---------------------------------------------------------------------------------------


async def test_internal_refuses_what_cannot_be_and_sends_nothing(qemu, images, machine, tmp_path):
    vda, vdb = images("base <- s1", folder="a"), images("base", folder="b")
    raw = qemu.create(tmp_path / "r.raw", form="raw")
    iso = qemu.create(tmp_path / "iso.qcow2")
    readonly = ("-drive", f"if=none,id=ro,format=qcow2,readonly=on,file={iso}",
                "-device", "virtio-blk-pci,drive=ro,id=vdo")  # fmt: skip
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active),
                 *blockdev("vdr", raw, "raw"), *readonly, "-device", "ide-cd,id=cd0") as running:  # fmt: skip
        for name in ("vda", "vdb"):
            running.qmp("blockdev-snapshot-internal-sync", device=f"{name}-node", name="old")
        async with running.connect() as vm:
            await vm.snapshot("ex", disks=["vdb"])
            before = listing(tmp_path), running.roots(), await vm.graph()
            cases = {
                "raw by default": (Snapshot("i1", inside=True), Unsupported, "active layer of vdr"),
                "raw": (Snapshot("i1", ("vda", "vdr"), inside=True), Unsupported, "active layer of vdr"),
                "read-only": (Snapshot("i1", ("vdo",), inside=True), Unsupported, "'vdo' is read-only"),
                "empty": (Snapshot("i1", ("cd0",), inside=True), Unsupported, "'cd0' has no medium"),
                "existing": (Snapshot("old", ("vda",), inside=True), TargetExists, "on vda"),
                "existing below": (Snapshot("old", ("vdb",), inside=True), TargetExists, "on v"),
                "external": (Snapshot("ex", ("vda",), inside=True), TargetExists, "external snapshot 'ex'"),
                "unknown disk": (Snapshot("i1", ("vdz",), inside=True), NotFound, "vdz"),
                "twice": (Snapshot("i1", ("vda", "vda-node"), inside=True), AmbiguousName, "twice"),
                "delete missing": (Delete("nope"), NotFound, "'nope'"),
                "delete below": (Delete("old"), NotInChain, "below the active layer of vdb"),
            }
            for case, (intent, error, text) in cases.items():
                with traced(vm) as sent, pytest.raises(Refused, match=text) as caught:
                    await vm.run(await vm.plan(intent))
                assert (case, type(caught.value), caught.value.exit_code) == (case, error, 3)
                assert (sent, caught.value.changed) == ([], Changed.NO)
            with traced(vm) as sent, pytest.raises(BadName, match="valid snapshot name"):
                await vm.snapshot('a"b', disks=["vda"], inside=True)
            assert sent == []
            assert (listing(tmp_path), running.roots(), await vm.graph()) == before


async def test_internal_refuses_a_disk_that_a_job_holds(qemu, images, machine, tmp_path):
    made = images("base")
    copy = qemu.create(tmp_path / "copy.qcow2")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("blockdev-snapshot-internal-sync", device="vda-node", name="old")
        running.qmp("drive-mirror", {"job-id": "theirs", "device": "vda-node", "target": copy,
                                     "format": "qcow2", "sync": "full", "mode": "existing"})  # fmt: skip
        running.qmp.wait_event("BLOCK_JOB_READY")
        async with running.connect() as vm:
            for intent in (Snapshot("i1", inside=True), Delete("old")):
                with traced(vm) as sent, pytest.raises(Busy, match="'theirs'"):
                    await vm.run(await vm.plan(intent))
                assert sent == []
            assert names(await vm.graph()) == ["old"]
        running.qmp("block-job-cancel", device="theirs")
        running.qmp.wait_event("BLOCK_JOB_COMPLETED")


# -- cut short -------------------------------------------------------------------------------------


async def test_delete_that_was_cut_between_two_disks_goes_on_when_it_is_said_again(qemu, images, machine):
    one, two = images("base", folder="a"), images("base", folder="b")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", two.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("i1", inside=True)

        def at(point):
            if point == 1:
                target.session._client._writer.transport.abort()

        async with stepped(running.socket, at) as vm:
            target = vm._target
            with pytest.raises(LinkLost) as caught:
                await vm.delete("i1")
            assert caught.value.changed is Changed.YES
        async with running.connect() as vm:
            assert [one.disks for one in (await vm.moments()).moments] == [("vdb",)]
            gone = await vm.delete("i1")
            assert gone.chains == {"vdb": two.chain}
            assert (await vm.moments()).moments == ()
    for made in (one, two):
        assert qemu.inside(made.active) == []
        assert qemu.read(made.active) == content(1)
        qemu.check(made.active)


@pytest.mark.parametrize("via", ["hmp", "jobs"])
async def test_name_that_is_anothers_id_is_refused_for_qemu_goes_back_by_id_first(images, machine, via):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await refuses(running, vm, Snapshot("1", inside=True), BadName, "the id of an internal snapshot")
            await refuses(running, vm, Checkpoint("1", "internal"), BadName, "the id of an internal snapshot")
            for name in ("a", "1", "b"):  # of ids 1, 2 and 3
                running.qmp.hmp(f"savevm {name}")
            await refuses(running, vm, Revert("1", via=via), AmbiguousName, "id of snapshot 'a'")
            running.write("vda", 7, 0, 512)
            await vm.revert("b", via=via)
            await vm.delete("1")
            assert [one.name for one in (await vm.moments()).moments] == ["a", "b"]
