"""External checkpoints (D1, D2, D3): chains, bytes, files, settings and run states, in every mode."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, listing, messages, traced
from integration.states import ENDINGS, MODES, note, opened, settings, status
from qmpsnap.plan.intent import Checkpoint

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 6 * MIB, 32 * KIB)


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request):
    return request.param


@pytest.fixture
def two(images):
    """A qcow2 disk of two layers, and a raw one."""
    return images("base <- s1", folder="a"), images("base", folder="b", base_format="raw")


async def test_checkpoint_keeps_the_disks_of_a_guest_that_runs_on(qemu, two, machine, way, mode, tmp_path):
    vda, vdb = two
    over = {"vda": f"{tmp_path}/a/base.c1.qcow2", "vdb": f"{tmp_path}/b/base.c1.qcow2"}
    file = f"{tmp_path}/a/base.c1.{ENDINGS[mode]}"
    with machine(*way("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        running.write("vda", *WRITE)
        before = settings(running)
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", mode))
            with traced(vm) as sent:
                taken = await vm.run(plan)
            assert sent == messages(plan)
            assert (status(running), settings(running), opened(running)) == ("running", before, [])
            assert taken.op == "checkpoint"
            assert taken.chains == {"vda": (over["vda"], *vda.chain), "vdb": (over["vdb"], *vdb.chain)}
            assert taken.chains == plan.chains_after == (await vm.graph()).chains()
            assert taken.active == over
            assert [qmpsnap.draw(files) for files in taken.chains.values()] == [
                "[base] <- [s1] <- [base.c1*]",
                "[base] <- [base.c1*]",
            ]
            assert 0 < taken.standstill_s < taken.elapsed_s
            assert (taken.left, taken.invalid, taken.notes) == ((), (), ())
            (moment,) = (await vm.moments()).moments
            assert (moment.name, moment.kind, moment.mode, moment.vm_state_file) == (
                "c1",
                "external",
                mode,
                file,
            )
            assert moment.current
            assert await vm.jobs.interrupted() == ()
        running.write("vda", *LATER)
    assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
    if mode == "in-place":
        assert taken.bytes == Path(file).stat().st_size > 100 * KIB
        assert len(qemu.inside(file)) == 1
        qemu.check(file)
    else:
        assert taken.bytes == note(file).stream_bytes > 100 * KIB
    moment = overwritten(content(2), WRITE)
    assert qemu.read(vda.active) == moment
    assert qemu.read(over["vda"]) == overwritten(moment, LATER)
    assert qemu.read(vdb.active, "raw") == qemu.read(over["vdb"]) == content(1)
    assert qemu.read(vda.files[0]) == content(1)
    qemu.check_chain(*taken.chains["vda"])
    qemu.check_chain(*taken.chains["vdb"])
    made = {name for name in listing(tmp_path) if ".qmpsnap/" not in name}
    assert made == {
        os.path.relpath(path, tmp_path) for path in (*vda.files, *vdb.files, *over.values(), file)
    }


async def test_checkpoint_of_a_paused_guest_leaves_it_paused(two, machine, mode):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        running.qmp("stop")
        before = settings(running)
        async with running.connect() as vm:
            plan = await vm.plan(Checkpoint("c1", mode))
            with traced(vm) as sent:
                taken = await vm.run(plan)
            assert sent == messages(plan)
            assert (taken.standstill_s, settings(running), opened(running)) == (0, before, [])
            (moment,) = (await vm.moments()).moments
            if mode == "in-place":
                assert (status(running), moment.mode, taken.notes) == ("paused", "in-place", ())
                return
            assert (status(running), moment.mode) == ("postmigrate", "stop")
            assert any("postmigrate" in one for one in taken.notes)
            assert any("--mode stop" in one for one in taken.notes) is (mode == "background")
            running.qmp("cont")
            running.write("vda", *WRITE)


async def test_checkpoint_puts_odd_settings_back_that_somebody_had_chosen(two, machine, mode):
    vda, vdb = two
    odd = [{"capability": "xbzrle", "state": True}, {"capability": "pause-before-switchover", "state": True}]
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        running.qmp("migrate-set-capabilities", capabilities=odd)
        running.qmp("migrate-set-parameters", {"max-bandwidth": 12345678})
        before = settings(running)
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode=mode)
        assert settings(running) == before
        assert (before[0]["xbzrle"], before[1]) == (True, 12345678)


async def test_checkpoints_of_every_mode_follow_each_other(two, machine, tmp_path):
    vda, vdb = two
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            for name, mode in (("c1", "stop"), ("c2", "background"), ("c3", "in-place"), ("c4", "stop")):
                await vm.checkpoint(name, mode=mode)
                assert (status(running), opened(running)) == ("running", [])
            moments = (await vm.moments()).moments
            chain = (await vm.graph()).chains()["vda"]
    assert [(one.name, one.mode) for one in moments] == [
        ("c1", "stop"),
        ("c2", "background"),
        ("c3", "in-place"),
        ("c4", "stop"),
    ]
    assert qmpsnap.draw(chain) == ("[base] <- [s1] <- [base.c1] <- [base.c2] <- [base.c3] <- [base.c4*]")


async def test_checkpoint_in_a_file_of_the_callers_choice(two, machine, mode, tmp_path):
    vda, vdb = two
    place = tmp_path / "memory, of c1"
    place.mkdir()
    with machine(*blockdev("vda", vda.active), *blockdev("vdb", vdb.active, "raw")) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode=mode, memory=place / "file")
            (moment,) = (await vm.moments()).moments
    assert moment.vm_state_file == f"{place}/file"
    assert listing(place) == ["file"]
    assert listing(tmp_path / "a") == sorted(
        ["base.qcow2", "s1.qcow2", "base.c1.qcow2", *(n for n in listing(tmp_path / "a") if "qmpsnap/" in n)]
    )
