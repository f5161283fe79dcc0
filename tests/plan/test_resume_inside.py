from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.model.features import Features
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.record import IntentRecord, Origin
from qmpsnap.plan import resume
from qmpsnap.plan.commands.block import internal_delete
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.commands.state import adopt, cont, loadvm
from qmpsnap.plan.scene import GuestScene
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.model.records import stages
from tests.plan.scenes import NOW, STATE, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.plan.plan import Plan

SAVE_ID, LOAD_ID = "qmpsnap-checkpoint-keep-00000001", "qmpsnap-revert-keep-00000001"
MADE = InternalSnapshot("1", "c1", 4096)


def disk(name: str, *snapshots: InternalSnapshot) -> Disk:
    return with_layer(chain("base <- s1*", name=name), 0, snapshots=snapshots)


BOTH = graph(disk("vda", MADE), disk("vdb", replace(MADE, vm_state_size=0)))
ONE = graph(disk("vda", MADE), disk("vdb"))
NONE = graph(disk("vda"), disk("vdb"))
SAVED = IntentRecord(
    SAVE_ID,
    "checkpoint-internal",
    NOW,
    BOTH.chains(),
    name="c1",
    origin=Origin(running=True, process="1:1"),
    directory=STATE,
)
LOADED = replace(
    SAVED,
    id=LOAD_ID,
    op="revert-internal",
    stages=stages(loadvm("c1", running=True), tidy=(finish_record(STATE, (LOAD_ID,)),)),
)


def rested(
    record: IntentRecord | None, of: Graph, *, job: Job | None = None, status: str = "running"
) -> Plan:
    """The plan of what is left, where a record or a job is found."""
    files = FakeFiles(of)
    if record is not None:
        files.records.append(record)
    machine = a_machine(of, running=status == "running", status=status)
    scene = GuestScene(
        of,
        files.look(resume.ask(of)),
        (job,) if job else (),
        Features(frozenset({"human-monitor-command"})),
        NOW,
        machine=machine,
    )
    named = record.id if record is not None else job.id if job is not None else ""
    return resume.plan(named, scene)


def test_resume_of_a_checkpoint_that_is_on_every_disk_is_its_record() -> None:
    plan = rested(SAVED, BOTH)
    assert plan.steps == (finish_record(STATE, (SAVE_ID,)),)
    assert (plan.notes, plan.ended) == (("checkpoint 'c1' was taken",), "finished")


def test_resume_of_a_checkpoint_that_is_on_no_disk_is_its_record() -> None:
    plan = rested(SAVED, NONE)
    assert plan.steps == (finish_record(STATE, (SAVE_ID,)),)
    assert (plan.notes, plan.ended) == (("checkpoint 'c1' was not taken",), "rolled-back")


def test_resume_of_a_checkpoint_on_some_disks_alone_is_to_take_it_from_those() -> None:
    plan = rested(SAVED, ONE)
    assert plan.steps == (internal_delete("vda", "vda-s1", "1", "c1"), finish_record(STATE, (SAVE_ID,)))
    assert not plan.stages[0].tidy  # when it fails the record has to stay
    assert plan.ended == "rolled-back"


@each(
    ("status", "of", "resumes", "says"),
    [
        ("running", BOTH, False, ""),
        ("paused", BOTH, False, ""),
        ("paused", ONE, False, ""),  # somebody paused it: QEMU calls what it stops itself otherwise
        ("restore-vm", ONE, True, ""),
        ("restore-vm", BOTH, False, "failed while reverting to 'c1'"),
    ],
)
def test_resume_of_a_load_depends_on_the_run_state(
    status: str, of: Graph, says: str, *, resumes: bool
) -> None:
    plan = rested(LOADED, of, status=status)
    assert plan.steps == (*([cont()] if resumes else []), finish_record(STATE, (LOAD_ID,)))
    assert plan.ended == ("rolled-back" if resumes else "finished" if says else "unknown")
    assert says in plan.vanished
    assert bool(says) is bool(plan.vanished)


def test_resume_of_a_load_of_a_paused_guest_lets_nothing_run() -> None:
    record = replace(LOADED, origin=Origin(running=False, process="1:1"))
    assert rested(record, ONE, status="restore-vm").steps == (finish_record(STATE, (LOAD_ID,)),)


def ended(job_id: str, kind: str, error: str | None = None) -> Job:
    return Job(job_id, kind, JobStatus.CONCLUDED, error=error)


@pytest.mark.parametrize("status", ["running", "restore-vm"])
def test_resume_of_a_load_whose_job_is_there_waits_for_it_dismisses_it_and_knows_how_to_go_on(
    status: str,
) -> None:
    plan = rested(LOADED, BOTH, job=ended(LOAD_ID, "snapshot-load"), status=status)
    assert plan.steps == (
        await_job(LOAD_ID, "concluded"), job_dismiss(LOAD_ID), finish_record(STATE, (LOAD_ID,)),
    )  # fmt: skip
    load = adopt("snapshot-load", LOAD_ID, name="c1", disks=("vda", "vdb"), running=status == "restore-vm")
    assert plan.resumes == (write_record(STATE, LOADED), load)


@each("kind", ["snapshot-save", "snapshot-load", "snapshot-delete"])
def test_resume_of_a_job_that_nobody_wrote_down_is_to_dismiss_it(kind: str) -> None:
    job_id = "qmpsnap-delete-keep-00000001"
    plan = rested(None, BOTH, job=ended(job_id, kind))
    assert plan.steps == (await_job(job_id, "concluded"), job_dismiss(job_id))
    assert (plan.op, plan.disks) == ("delete", ())
    assert plan.resumes == (adopt(kind, job_id),)


@pytest.mark.parametrize("now", ["base <- s2*", ""])
def test_resume_of_a_checkpoint_leaves_it_where_a_disk_is_not_as_it_was(now: str) -> None:
    of = graph(disk("vda", replace(MADE, name="a b")), *([chain(now, name="vdb")] if now else []))
    plan = rested(replace(SAVED, name="a b"), of)
    assert plan.steps == (finish_record(STATE, (SAVE_ID,)),)
    assert plan.notes[0].endswith(
        "vdb is missing, or is on another layer. It was kept; to delete it: qmpsnap delete 'a b'"
    )


@pytest.mark.parametrize("process", ["", "2:2"])
def test_resume_of_a_load_lets_no_guest_run_in_another_qemu(process: str) -> None:
    record = replace(LOADED, origin=Origin(running=True, process=process))
    plan = rested(record, ONE, status="restore-vm")
    assert plan.steps == (finish_record(STATE, (LOAD_ID,)),)
    assert "left as it is" in plan.notes[0]


@pytest.mark.parametrize("status", ["postmigrate", "inmigrate"])
def test_resume_of_a_checkpoint_deletes_nothing_where_that_would_end_qemu(status: str) -> None:
    with pytest.raises(Unsupported):
        rested(SAVED, ONE, status=status)
    assert rested(SAVED, NONE, status=status).steps == (finish_record(STATE, (SAVE_ID,)),)
