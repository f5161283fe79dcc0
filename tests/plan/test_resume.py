from __future__ import annotations

import dataclasses
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal

import pytest
from msgspec.structs import replace

from qmpsnap.errors import NotFound
from qmpsnap.model.features import Features
from qmpsnap.model.files import FileFact
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph, Node
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Stage
from qmpsnap.plan import effect, resume
from qmpsnap.plan.commands.block import blockdev_del, flush
from qmpsnap.plan.commands.files import Proof, create_file, remove_orphan, retire_file
from qmpsnap.plan.commands.jobs import adopt_job, await_job, end_copy, job_complete, job_dismiss, job_finalize
from qmpsnap.plan.commands.records import finish_record, keep_moment, record_of, write_record
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import NOW, STATE, encrypted, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

TWO = graph(vda="base <- s1 <- s2*")
S2, S1, BASE = "/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"
COPY = "/images/copy.qcow2"
FLUSHED = (flush("vda-s2"), flush("vda-base"))  # what a commit of s1 into base leaves
PIVOT, MIDDLE, KEEP = Commit("vda"), Commit("vda", "s1", "base"), Commit("vda", keep_overlay=True)


def left_by(plan: Plan) -> IntentRecord:
    """The record that the plan's run leaves when its client dies."""
    assert plan.record is not None
    return replace(plan.record, directory=plan.steps[0].arguments["directory"])


def rested(
    job_id: str,
    of: Graph,
    *,
    files: FakeFiles | None = None,
    jobs: tuple[Job, ...] = (),
) -> Plan:
    files = files or FakeFiles(of)
    first = files.look(resume.ask(of))
    records = tuple(one for one in first.records if isinstance(one, IntentRecord) and one.id == job_id)
    looked = files.look(resume.ask(of, records=records))
    return resume.plan(job_id, Scene(of, looked, jobs, Features(frozenset({"human-monitor-command"})), NOW))


def after(plan: Plan) -> Graph:
    assert plan.after is not None
    return plan.after


def files_with(record: IntentRecord, of: Graph) -> FakeFiles:
    files = FakeFiles(of)
    files.records.append(record)
    return files


def files_left_by(plan: Plan, of: Graph) -> FakeFiles:
    """The files as they are when the run's client dies at its end: the record may lie in two places."""
    files = FakeFiles(of)
    files.records += [
        replace(record, directory=step.arguments["directory"])
        for step in plan.steps
        if (record := record_of(step))
    ]
    return files


def alive(record: IntentRecord, status: JobStatus = JobStatus.RUNNING) -> tuple[Job, ...]:
    return (Job(record.id, record.op, status, ready=status is JobStatus.READY),)


@each(
    ("intent", "status", "steps"),
    [
        (PIVOT, JobStatus.RUNNING, ["ready", "complete", "concluded", "dismiss"]),
        (PIVOT, JobStatus.READY, ["complete", "concluded", "dismiss"]),
        (PIVOT, JobStatus.CONCLUDED, ["concluded", "dismiss"]),
        (
            MIDDLE,
            JobStatus.RUNNING,
            [
                *("pending", "flush s2", "flush s1", "flush base", "finalize", "concluded"),
                *("flush s2", "flush base", "dismiss"),
            ],
        ),
        (MIDDLE, JobStatus.CONCLUDED, ["concluded", "flush s2", "flush base", "dismiss"]),
        (KEEP, JobStatus.RUNNING, ["ready", "end", "concluded", "dismiss"]),
        (
            Stream("vda"),
            JobStatus.RUNNING,
            ["pending", "flush s2", "flush s1", "flush base", "finalize", "concluded", "flush s2"],
        ),
        (Stream("vda"), JobStatus.CONCLUDED, ["concluded", "flush s2"]),
        (Mirror("vda", COPY, "pivot"), JobStatus.READY, ["complete", "concluded", "dismiss"]),
        (
            Mirror("vda", COPY, "finish"),
            JobStatus.RUNNING,
            ["ready", "end", "concluded", "finish", "dismiss"],
        ),
    ],
)
def test_resume_brings_a_job_to_the_end_that_its_id_names(
    intent: Commit | Stream | Mirror, status: JobStatus, steps: list[str]
) -> None:
    record = left_by(planned(intent, TWO))
    plan = rested(record.id, TWO, files=files_with(record, TWO), jobs=alive(record, status))
    named = {
        "ready": await_job(record.id, "ready"),
        "pending": await_job(record.id, "pending"),
        "finalize": job_finalize(record.id),
        **{f"flush {name}": flush(f"vda-{name}") for name in ("s2", "s1", "base")},
        "concluded": await_job(record.id, "concluded"),
        "complete": job_complete(record.id),
        "end": end_copy(record.id),
        "dismiss": job_dismiss(record.id),
        "finish": finish_record(record.directory, (record.id,)),
    }
    assert plan.stages[0].steps == tuple(named[step] for step in steps)
    assert plan.stages[0].verify
    assert (plan.disks, plan.expect) == (("vda",), record.after)
    assert plan.resumes[0] == write_record(record.directory, record)
    assert plan.resumes[-1] == adopt_job(record.id, dismisses_itself=record.op == "stream")


def test_resume_of_a_commit_retires_the_folded_files_and_says_what_is_invalid() -> None:
    record = left_by(planned(MIDDLE, TWO))
    plan = rested(record.id, TWO, files=files_with(record, TWO), jobs=alive(record))
    assert plan.stages[1] == Stage(
        "clean up",
        (retire_file(S1, "rename", f"{S1}.invalid", Proof("", BASE)), finish_record(STATE, (record.id,))),
        tidy=True,
    )
    assert (plan.invalid, plan.invalid_if_stopped) == ((f"{S1}.invalid",), (BASE,))
    assert plan.moves == ()


def test_resume_of_a_commit_that_keeps_the_overlay_keeps_its_record() -> None:
    record = left_by(planned(KEEP, TWO))
    plan = rested(record.id, TWO, files=files_with(record, TWO), jobs=alive(record))
    assert len(plan.stages) == 1
    assert plan.invalid == (S1, BASE)


def test_resume_of_a_commit_that_keeps_the_overlay_and_has_ended_leaves_its_record() -> None:
    record = left_by(planned(KEEP, TWO))
    plan = rested(record.id, TWO, files=touched(files_with(record, TWO), BASE, -1))
    assert (plan.steps, plan.vanished, plan.invalid) == ((), "", (S1, BASE))
    assert "the overlay is kept" in plan.notes


def test_resume_undoes_the_target_that_the_earlier_run_made() -> None:
    record = left_by(planned(Mirror("vda", COPY, "pivot"), TWO))
    plan = rested(record.id, TWO, files=files_with(record, TWO), jobs=alive(record))
    assert plan.resumes == (write_record(STATE, record), create_file(COPY, ""), adopt_job(record.id))
    assert plan.moves == ("vda",)


@each(
    ("job_id", "driver", "steps"),
    [
        (
            "qmpsnap-commit-pivot-0a1b2c3d",
            "mirror_top",
            ["await-job", "job-complete", "await-job", "job-dismiss"],
        ),
        (
            "qmpsnap-commit-keep-0a1b2c3d",
            "commit_top",
            ["await-job", *["human-monitor-command"] * 3, "job-finalize", "await-job", "job-dismiss"],
        ),
        (
            "qmpsnap-commit-keep-0a1b2c3d",
            "mirror_top",
            ["await-job", "block-job-cancel", "await-job", "job-dismiss"],
        ),
        (
            "qmpsnap-stream-keep-0a1b2c3d",
            "copy-on-read",
            ["await-job", *["human-monitor-command"] * 3, "job-finalize", "await-job"],
        ),
    ],
)
def test_resume_does_what_the_id_says_when_there_is_no_record(
    job_id: str, driver: str, steps: list[str]
) -> None:
    held = graph(chain("base <- s1 <- s2*"), chain("data*", name="vdb"), nodes=(Node("#f", driver, S2),))
    kind = job_id.split("-")[1]
    plan = rested(job_id, held, jobs=(Job(job_id, kind, JobStatus.RUNNING),))
    assert [step.command for step in plan.steps] == steps
    adopted = adopt_job(job_id, dismisses_itself=kind == "stream")
    assert (plan.disks, plan.resumes, plan.expect) == (("vda",), (adopted,), {})


def test_resume_without_a_record_leaves_it_to_the_outcome_on_which_of_two_disks_the_job_was() -> None:
    filters = (Node("#f", "mirror_top", S2), Node("#g", "mirror_top", "/images/data.qcow2"))
    both = graph(chain("base <- s1 <- s2*"), chain("data*", name="vdb"), nodes=filters)
    one, other = "qmpsnap-mirror-pivot-0a1b2c3d", "qmpsnap-mirror-pivot-4e5f6071"
    plan = rested(other, both, jobs=tuple(Job(each, "mirror", JobStatus.RUNNING) for each in (one, other)))
    assert (plan.disks, plan.moves) == (("vda", "vdb"), ("vda", "vdb"))


@each("job_id", ["qmpsnap-commit-pivot-0a1b2c3d", "somebody's", ""])
def test_resume_refuses_when_there_is_neither_a_job_nor_a_record(job_id: str) -> None:
    with pytest.raises(NotFound):
        rested(job_id, TWO)


def test_resume_of_a_snapshot_that_was_taken_keeps_its_moment() -> None:
    done = planned(Snapshot("n1"), TWO)
    record = left_by(done)
    plan = rested(record.id, after(done), files=files_with(record, after(done)))
    assert plan.steps == (keep_moment(STATE, record.id, "n1"),)
    assert plan.notes == ("snapshot 'n1' was taken",)


def test_resume_of_a_snapshot_that_was_not_taken_removes_its_empty_files() -> None:
    record = left_by(planned(Snapshot("n1"), TWO))
    plan = rested(record.id, TWO, files=files_with(record, TWO))
    assert plan.steps == (remove_orphan("/images/base.n1.qcow2", S2), finish_record(STATE, (record.id,)))
    assert plan.notes == ("snapshot 'n1' was not taken; its files are removed",)


def test_resume_of_a_snapshot_removes_no_file_that_qemu_holds() -> None:
    record = left_by(planned(Snapshot("n1"), TWO))
    held = graph(*TWO.disks.values(), nodes=(Node("x", "qcow2", "/images/base.n1.qcow2"),))
    plan = rested(record.id, held, files=files_with(record, held))
    assert plan.steps == (finish_record(STATE, (record.id,)),)


def test_resume_of_a_snapshot_removes_nothing_when_one_of_its_disks_was_unplugged_since() -> None:
    both = graph(vda="base <- s1*", vdb="data*")
    done = planned(Snapshot("n1"), both)
    record = left_by(done)
    one_left = graph(after(done).disks["vda"])
    plan = rested(record.id, one_left, files=files_with(record, after(done)))
    assert plan.steps == (keep_moment(STATE, record.id, "n1"),)  # the transaction took all or none


def test_resume_of_a_mirror_that_had_pivoted_only_removes_the_record() -> None:
    done = planned(Mirror("vda", COPY, "pivot", "top"), TWO)
    record = left_by(done)
    plan = rested(record.id, after(done), files=files_with(record, after(done)))
    assert plan.steps == (finish_record(STATE, (record.id,)),)
    assert (plan.vanished, plan.expect) == ("", record.after)
    assert plan.moves == ("vda",)  # no earlier result said what to start the machine from


@pytest.mark.parametrize("intent", [PIVOT, Mirror("vda", COPY, "pivot")])
def test_resume_of_a_pivot_whose_job_was_not_dismissed_says_that_the_root_moved(
    intent: Commit | Mirror,
) -> None:
    done = planned(intent, TWO)
    jobs = alive(left_by(done), JobStatus.CONCLUDED)
    plan = rested(done.job_id, after(done), files=files_left_by(done, after(done)), jobs=jobs)
    assert plan.moves == ("vda",)


def test_resume_finds_the_record_of_a_mirror_from_either_chain_and_removes_both() -> None:
    """Killed between two removals, what is left lies beside the chain that there is."""
    done = planned(Mirror("vda", COPY, "pivot"), TWO)
    old, new = finish_record(STATE, (done.job_id,)), finish_record("/images/copy.qmpsnap", (done.job_id,))
    files = files_left_by(done, TWO)
    assert rested(done.job_id, after(done), files=files).steps == (old, new)
    jobs = alive(left_by(done))
    plan = rested(done.job_id, TWO, files=files_left_by(done, TWO), jobs=jobs)
    assert plan.stages[-1].steps == (old, new)
    undone = [back for step in reversed(plan.resumes) for back in step.undo]
    assert [step for step in undone if step.command == "finish-record"] == [new, old]
    begun = rested(done.job_id, TWO, files=files_left_by(done, TWO))
    assert begun.steps == (remove_orphan(COPY, None), new, old)


def test_resume_of_a_mirror_that_had_not_begun_removes_its_empty_target() -> None:
    record = left_by(planned(Mirror("vda", COPY, "pivot"), TWO))
    files = files_with(record, TWO)
    files.put(COPY, format="raw", size_bytes=0)
    plan = rested(record.id, TWO, files=files)
    assert plan.steps == (remove_orphan(COPY, None), finish_record(STATE, (record.id,)))
    assert (plan.vanished, plan.notes) == ("", ("the job had not started",))
    assert plan.ended == "rolled-back"


@pytest.mark.parametrize("made", [True, False])
def test_resume_of_a_mirror_whose_job_is_gone_is_no_success_and_keeps_the_target(made: bool) -> None:
    record = left_by(planned(Mirror("vda", COPY, "finish"), TWO))
    record = record if made else replace(record, stages=record.stages[1:])
    files = files_with(record, TWO)
    files.put(COPY)
    plan = rested(record.id, TWO, files=files)
    assert plan.steps == (finish_record(STATE, (record.id,)),)
    assert "it is not known whether" in plan.vanished


STREAMS = pytest.mark.parametrize("intent", [Stream("vda"), Stream("vda", "base"), Stream("vda", into="s1")])


@STREAMS
def test_resume_of_a_stream_that_had_ended_well_only_removes_the_record(intent: Stream) -> None:
    three = graph(vda="base <- s0 <- s1 <- s2*")
    done = planned(intent, three)
    record = left_by(done)
    plan = rested(record.id, after(done), files=files_with(record, after(done)))
    assert (plan.steps, plan.vanished) == ((finish_record(record.directory, (record.id,)),), "")


def test_resume_of_a_stream_tells_what_its_own_result_would_have_told_and_once() -> None:
    three = graph(vda="base <- s0 <- s1 <- s2*")
    plan = planned(Stream("vda"), three)
    record = left_by(plan)
    ended = rested(record.id, after(plan), files=files_with(record, after(plan)))
    running = rested(record.id, three, files=files_with(record, three), jobs=alive(record))
    assert ended.notes == running.notes == plan.notes != ()


@STREAMS
def test_resume_of_a_stream_whose_job_is_gone_is_no_success(intent: Stream) -> None:
    three = graph(vda="base <- s0 <- s1 <- s2*")
    record = left_by(planned(intent, three))
    plan = rested(record.id, three, files=files_with(record, three))
    assert plan.steps == (finish_record(record.directory, (record.id,)),)
    assert (plan.vanished, plan.invalid) == (
        "the job was gone before its end; no snapshot was lost",
        (),
    )


@pytest.mark.parametrize(
    ("policy", "steps", "invalid"),
    [
        ("rename", (retire_file(S1, "rename", f"{S1}.invalid", Proof("", BASE)),), (f"{S1}.invalid",)),
        ("remove", (retire_file(S1, "remove", "", Proof("", BASE)),), ()),
    ],
)
def test_resume_of_a_commit_that_had_ended_well_retires_the_folded_files(
    policy: str, steps: tuple[Step, ...], invalid: tuple[str, ...]
) -> None:
    done = planned(dataclasses.replace(MIDDLE, folded=policy), TWO)  # type: ignore[arg-type]
    record = left_by(done)
    plan = rested(record.id, after(done), files=files_with(record, TWO))
    assert plan.steps == (*FLUSHED, *steps, finish_record(STATE, (record.id,)))
    assert (plan.vanished, plan.invalid, plan.moves) == ("", invalid, ())


def test_resume_of_a_commit_that_had_pivoted_says_that_the_root_moved() -> None:
    done = planned(PIVOT, TWO)
    record = left_by(done)
    assert rested(record.id, after(done), files=files_with(record, TWO)).moves == ("vda",)


def test_resume_of_a_commit_that_keeps_folded_files_names_them() -> None:
    done = planned(dataclasses.replace(MIDDLE, folded="keep"), TWO)
    record = left_by(done)
    plan = rested(record.id, after(done), files=files_with(record, TWO))
    assert plan.steps == (*FLUSHED, finish_record(STATE, (record.id,)))
    assert plan.invalid == (S1,)


def touched(files: FakeFiles, path: str, seconds: float) -> FakeFiles:
    """The files, one of them written so many seconds after the record."""
    fact = files.facts[path]
    files.facts[path] = replace(fact, modified=1714564800.0 + seconds)  # NOW
    return files


def test_resume_of_a_commit_that_had_not_begun_removes_the_record() -> None:
    record = left_by(planned(MIDDLE, TWO))
    files = touched(files_with(record, TWO), BASE, -1)
    plan = rested(record.id, TWO, files=files)
    assert plan.steps == (finish_record(STATE, (record.id,)),)
    assert (plan.vanished, plan.invalid, plan.notes) == ("", (), ("the job had not started",))
    assert plan.ended == "rolled-back"


@each("seconds", [0.0, -0.05, 3600.0])
def test_resume_of_a_commit_that_wrote_into_its_base_keeps_the_record_and_names_the_base(
    seconds: float,
) -> None:
    record = left_by(planned(MIDDLE, TWO))
    plan = rested(record.id, TWO, files=touched(files_with(record, TWO), BASE, seconds))
    assert plan.steps == ()
    assert plan.vanished == "the job was gone before its end; it had written into its base"
    assert plan.invalid == (BASE,)


def test_resume_of_a_commit_believes_that_the_base_was_written_when_it_cannot_look() -> None:
    record = left_by(planned(MIDDLE, TWO))
    files = files_with(record, TWO)
    files.facts[BASE] = FileFact("other", real=BASE, problem="permission denied")
    assert rested(record.id, TWO, files=files).invalid == (BASE,)


def test_resume_expects_the_chain_that_the_record_names_also_over_a_remote_base() -> None:
    remote = graph(with_layer(chain("base <- s1 <- s2*"), 2, file="nbd://host/x", local=False))
    done = planned(Stream("vda", base="nbd://host/x"), remote)
    record = left_by(done)
    plan = rested(record.id, after(done), files=files_with(record, after(done)))
    assert plan.vanished == ""


def test_resume_of_a_snapshot_on_an_encrypted_disk_frees_the_overlay_that_was_not_put_on() -> None:
    of, files = encrypted("base*")
    plan = planned(Snapshot("n1"), of, files=files)
    record, opened = left_by(plan), effect.apply(of, plan.steps[2])
    files.records.append(record)
    files.put("/images/base.n1.qcow2", backing=BASE)
    assert rested(record.id, opened, files=files).steps == (
        blockdev_del(plan.steps[2].arguments["node-name"]),
        remove_orphan("/images/base.n1.qcow2", BASE),
        finish_record(STATE, (record.id,)),
    )


@each(
    ("ending", "steps"),
    [
        (
            "finish",
            ["ready", "block-job-cancel", "concluded", "blockdev-del", "finish-record", "job-dismiss"],
        ),
        (
            "pivot",
            ["ready", "job-complete", "concluded", "job-dismiss", "blockdev-del", *["finish-record"] * 2],
        ),
    ],
)
def test_resume_of_a_mirror_of_an_encrypted_disk_frees_the_node_that_nobody_reads(
    ending: Literal["pivot", "finish"], steps: list[str]
) -> None:
    of, files = encrypted("base*")
    of = graph(with_layer(of.disks["vda"], 0, node="qmpsnap-a-00000000"))
    plan = planned(Mirror("vda", "/copies/vda.qcow2", ending), of, files=files)
    record, opened = (
        left_by(plan),
        effect.apply_all(of, [step for step in plan.steps if step.command == "blockdev-add"]),
    )
    files.records += [
        replace(written, directory=step.arguments["directory"])
        for step in plan.steps
        if (written := record_of(step))
    ]
    rest = rested(record.id, opened, files=files, jobs=alive(record))
    assert [str(step.arguments.get("until", step.command)) for step in rest.steps] == steps
    undone = [back.command for step in reversed(rest.resumes) for back in step.undo]
    assert undone.index("blockdev-del") < undone.index("remove-file")


def test_resume_of_a_mirror_of_an_encrypted_disk_that_had_not_begun_removes_its_empty_copy() -> None:
    of, files = encrypted("base*")
    plan = planned(Mirror("vda", COPY, "finish"), of, files=files)
    record = left_by(plan)
    files.records.append(record)
    files.put(COPY)
    files.facts[COPY] = replace(files.facts[COPY], luks=True)
    steps = rested(record.id, effect.apply(of, plan.steps[2]), files=files).steps
    assert steps == (
        blockdev_del(plan.steps[2].arguments["node-name"]),
        remove_orphan(COPY, ""),
        finish_record(STATE, (record.id,)),
    )


@each("intent", [Snapshot("n1"), Stream("vda"), PIVOT, MIDDLE, KEEP, Mirror("vda", COPY, "pivot")])
@each("happened", [False, True])
@each("job", [False, True])
def test_resume_asks_no_operation_for_its_name(
    intent: Snapshot | Commit | Stream | Mirror, *, happened: bool, job: bool
) -> None:
    """What is left is read from its steps: one that nobody has heard of is brought to its end as well."""
    done = planned(intent, TWO)
    of = after(done) if happened else TWO
    record, files, unheard = left_by(done), files_left_by(done, of), files_left_by(done, of)
    unheard.records[:] = [replace(one, op="unheard-of") for one in unheard.records]
    jobs = (Job(record.id, record.op, JobStatus.RUNNING),) if job and record.start is not None else ()
    plan = rested(record.id, of, files=files, jobs=jobs)
    same = rested(record.id, of, files=unheard, jobs=jobs)
    assert same.steps == plan.steps
    assert (same.vanished, same.invalid, same.moves) == (plan.vanished, plan.invalid, plan.moves)
    assert [step for step in same.resumes if step.command != "write-record"] == [
        step for step in plan.resumes if step.command != "write-record"
    ]


def test_resume_flushes_by_reopening_where_there_is_no_human_monitor() -> None:
    done = planned(MIDDLE, TWO)
    of = after(done)
    disk = of.disks["vda"]
    layers = tuple(replace(layer, file_node=f"{layer.node}-file") for layer in disk.layers)
    of = replace(of, disks=Frozen({**of.disks, "vda": replace(disk, layers=layers)}))
    looked = files_left_by(done, of).look(resume.ask(of))
    features = Features(frozenset({"blockdev-reopen"}))
    plan = resume.plan(left_by(done).id, Scene(of, looked, (), features, NOW))
    flushes = [step.arguments["options"][0] for step in plan.steps if step.way == "flush"]
    assert [(one["node-name"], one.get("backing")) for one in flushes] == [
        (layer.node, below.node if below else None) for layer, below in zip_longest(layers, layers[1:])
    ]
