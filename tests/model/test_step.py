from __future__ import annotations

import copy
import pickle

from msgspec.structs import replace

from qmpsnap.model.graph import Io
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Root, Step
from qmpsnap.plan.commands.block import blockdev_add, flush, internal_delete, probe_absent
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.jobs import adopt_job, await_job, end_copy, job_cancel
from qmpsnap.plan.commands.records import finish_record, record_of, write_record
from qmpsnap.plan.commands.state import cont, savevm, snapshot_load, stop
from qmpsnap.testing.drawing import chain
from tests.each import each

JOB = "qmpsnap-commit-keep-00000000"
LOAD = snapshot_load(JOB, "c1", (("vda", "n"),), "n", running=True)


@each(
    ("step", "job_id"),
    [
        (LOAD, JOB),
        (await_job(JOB, "ready"), JOB),
        (adopt_job(JOB), JOB),
        (end_copy(JOB), JOB),
        (job_cancel(JOB), JOB),
        (stop(), ""),
        (internal_delete("vda", "root", "3", "i1"), ""),  # an id, and a device, that are no job's
        (remove_state("/m", JOB), ""),
        (finish_record("/r", (JOB,)), ""),
    ],
)
def test_step_knows_the_job_that_it_has_to_do_with(step: Step, job_id: str) -> None:
    assert step.job_id == job_id


@each(
    ("step", "way"),
    [
        (cont(), "cont"),
        (blockdev_add("n", "/f"), "blockdev-add"),
        (probe_absent("/f", "n"), "probe"),
        (flush("n"), "flush"),
        (savevm("c1", ()), "savevm"),
    ],
)
def test_step_is_done_as_its_kind_says_or_else_as_its_command(step: Step, way: str) -> None:
    assert step.way == way


def test_step_on_vm_state_is_one_that_starts_a_job() -> None:
    assert LOAD.on_state
    assert not savevm("c1", ()).on_state


def test_step_that_writes_a_record_has_it() -> None:
    record = IntentRecord(JOB, "commit", "2024-05-01T12:00:00+00:00")
    assert record_of(write_record("/r", record)) is record
    assert record_of(finish_record("/r", (JOB,))) is None


def test_step_travels_and_is_equal_to_one_that_is_made_again() -> None:
    again = snapshot_load(JOB, "c1", (("vda", "n"),), "n", running=True)
    assert again == LOAD != snapshot_load(JOB, "c1", (("vda", "n"),), "n")
    assert pickle.loads(pickle.dumps(LOAD)) == copy.deepcopy(LOAD) == LOAD


def test_root_of_a_disk_is_the_chain_from_that_layer_on() -> None:
    disk = chain("base <- s1 <- s2*")
    s2, s1, base = disk.layers
    below = ((s1.file, "qcow2"), (base.file, "qcow2"))
    assert Root.of(disk) == Root("vda", s2.node, s2.file, "qcow2", s1.file, below)
    assert Root.of(disk, 2) == Root("vda", base.node, base.file, "qcow2", None, ())
    direct = replace(disk, layers=(replace(s2, io=Io(direct=True)), s1, base))
    assert Root.of(direct).io == Io(direct=True)
