"""The client is killed while QEMU is in the middle of writing VM state to a file, or of reading a store.

Who comes later brings it to a good end: the guest runs, QEMU is set as before, nothing half-made is listed.
A background checkpoint is not among them: QEMU takes none of memory that lies in a file, and the memory of
a machine without a guest is written in no time otherwise. test_kill.py kills it right after it has begun.
"""

from __future__ import annotations

import pytest

from integration.cases import CASES
from integration.harness import Rig
from integration.test_kill import check_told, end, run
from integration.test_middle import AFTER, memory  # noqa: F401 - a fixture
from qmpsnap.run.outcome import Done

# What becomes of each: taken back, or brought to its end.
ENDS = {
    "checkpoint stop": False,
    "checkpoint in place": False,
    "revert in place": True,
    "save": False,
}


@pytest.mark.parametrize("name", ENDS)
async def test_killed_client_leaves_a_file_half_written_and_the_next_one_puts_all_right(
    qemu,
    tmp_path,
    memory,  # noqa: F811
    name,
):
    rig = Rig(qemu, CASES[name], tmp_path / "rig", memory)
    with rig.start() as running:
        await rig.prepare()
        async with running.connect() as vm:
            plan = await vm.plan(rig.intent)
        performed = [step for step in plan.steps if step.command != "await-job"]
        (place,) = (
            2 * number + (step.command == "migrate")  # which is answered at once
            for number, step in enumerate(performed)
            if step.command in {"migrate", "snapshot-save", "snapshot-load"}
        )
        assert run(running, rig, name, place, AFTER) == -9
        # While a job saves or loads QEMU answers nobody, on a busy host for longer than a client waits.
        running.qmp("query-status")
        async with running.connect() as vm:
            result = await end(vm)
            done = await rig.cleared(vm)
            assert isinstance(result, Done)
            check_told(result, name, done=done)
            listed = [one.name for one in (await vm.moments()).moments]
        assert done is ENDS[name]
        assert listed == (["ck"] if name == "revert in place" else [])
        running.check_nothing_left()
        rig.check_machine(done=done)
    rig.verify(done=done)
    rig.forget_records()
