"""Another client's job or migration ends while we look at the machine, or before we come.

What is planned is planned from one instant: on the chain that the job has left.
"""

from __future__ import annotations

import itertools

import pytest

from integration.cases import CASES
from integration.harness import Rig
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, wait_for
from integration.test_kill import run
from qmpsnap.errors import Busy
from qmpsnap.plan.intent import Checkpoint, Snapshot

LATER = (0xB7, 5 * MIB, 64 * KIB)
INTENTS = {"snapshot": Snapshot("n"), "in place": Checkpoint("n", "in-place")}


def after(vm, question, do, *, times=1):
    """Call `do` once, when that question has been answered so many times."""
    ask, asked = getattr(vm._target, question), itertools.count(1)

    async def answer(*arguments):
        found = await ask(*arguments)
        if next(asked) == times:
            do()
        return found

    setattr(vm._target, question, answer)


@pytest.mark.parametrize("name", INTENTS)
async def test_operation_works_on_the_chain_that_another_clients_job_has_just_left(
    qemu, images, machine, tmp_path, name
):
    made, overlay = images("base <- s1"), str(tmp_path / "theirs.qcow2")
    with machine(*blockdev("vda", made.active)) as running:
        above = {"snapshot-file": overlay, "snapshot-node-name": "theirs"}
        running.qmp("blockdev-snapshot-sync", {"node-name": "vda-node", "format": "qcow2", **above})
        running.write("vda", *LATER)
        running.qmp("block-commit", {"device": "theirs", "base-node": "vda-node", "job-id": "theirs"})
        running.qmp.wait_event("BLOCK_JOB_READY")

        def pivot():
            running.qmp("job-complete", id="theirs")
            running.qmp.wait_event("JOB_STATUS_CHANGE", id="theirs", status="null")

        async with running.connect() as vm:
            after(vm, "graph", pivot)
            done = await vm.do(INTENTS[name])
            assert done.chains["vda"][1:] == made.chain
            assert [moment.name for moment in (await vm.moments()).moments] == ["n"]
        running.check_nothing_left()
        running.quit()
    assert qemu.read(done.chains["vda"][0]) == overwritten(content(2), LATER)


@pytest.mark.one_qemu
@pytest.mark.parametrize("times", [2, 4])  # it looks twice before it has the machine's lock, and twice then
@pytest.mark.parametrize("name", ["stream", "commit"])
async def test_wait_finishes_what_a_killed_client_left_and_another_one_ends_meanwhile(
    qemu, tmp_path, name, times
):
    rig = Rig(qemu, CASES[name], tmp_path / "rig")
    with rig.start() as running:
        async with running.connect() as vm:
            plan = await vm.plan(rig.intent)
        performed = [step.command for step in plan.steps if step.command != "await-job"]
        assert run(running, rig, name, 2 * performed.index("job-finalize")) == -9
        async with running.connect() as vm:
            (job,) = await vm.jobs.list()

            def end():
                running.qmp("job-finalize", id=job.id)
                if name == "commit":  # a stream dismisses itself
                    running.qmp("job-dismiss", id=job.id)

            after(vm, "look", end, times=times)
            done = await vm.jobs.wait(job.id)
            assert done.chains == plan.chains_after
            assert await rig.cleared(vm)
        running.check_nothing_left()
    rig.verify(done=True)


@pytest.mark.parametrize("name", ["save", "checkpoint background"])
async def test_wait_leaves_a_guest_where_it_is_that_was_migrated_away_after_the_client_was_killed(
    qemu, tmp_path, name
):
    rig = Rig(qemu, CASES[name], tmp_path / "rig")
    with rig.start() as running:
        await rig.prepare()
        async with running.connect() as vm:
            plan = await vm.plan(rig.intent)
        performed = [step.command for step in plan.steps if step.command != "await-job"]
        assert run(running, rig, name, 2 * performed.index("stop")) == -9
        off = [{"capability": "background-snapshot", "state": False}]
        running.qmp("migrate-set-capabilities", capabilities=off)
        go = tmp_path / "go"
        running.qmp("migrate", uri=f"exec:until [ -e {go} ]; do sleep 0.01; done; cat > /dev/null")
        wait_for(lambda: running.qmp("query-migrate").get("status") == "active", "the migration")
        async with running.connect() as vm:
            (record,) = await vm.jobs.interrupted()
            with pytest.raises(Busy, match="a migration is running"):
                await vm.jobs.wait(record.id)
            go.touch()
            wait_for(lambda: running.qmp("query-status")["status"] == "postmigrate", "the migration's end")
            done = await vm.jobs.wait(record.id)
            assert "the guest stays in postmigrate" in done.notes[-1]
            assert not await vm.jobs.interrupted()
        assert running.qmp("query-status")["status"] == "postmigrate"
        running.check_nothing_left()
        assert rig._settings() == rig.settings
        assert rig.names() == rig.before
    rig.verify(done=False)
