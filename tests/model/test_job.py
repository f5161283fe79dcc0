from __future__ import annotations

from itertools import pairwise

from qmpsnap.model.job import (
    ENDED,
    TRANSITIONS,
    VERBS,
    Ending,
    IoStatus,
    Job,
    JobId,
    JobStatus,
    JobVerb,
    parse_job_id,
)
from tests.each import each


def test_parse_job_id_reads_what_a_job_id_spells():
    for op in ("commit", "checkpoint", "backup"):
        for ending in Ending:
            name = JobId(op, ending, "0a1b2c3d")
            assert parse_job_id(str(name)) == name


def test_job_id_spells_the_published_grammar():
    assert str(JobId("commit", Ending.PIVOT, "0a1b2c3d")) == "qmpsnap-commit-pivot-0a1b2c3d"


@each(
    "text",
    [
        "",
        "drive0",
        "qmpsnap-commit-pivot-",
        "qmpsnap-commit-pivot-0A1B2C3D",
        "qmpsnap-commit-pivot-0a1b2c3d0",
        "qmpsnap-commit-pivot-0a1b2c3d\n",
        "qmpsnap-Backup-pivot-0a1b2c3d",
        "qmpsnap--pivot-0a1b2c3d",
        "qmpsnap-commit-stop-0a1b2c3d",
        "x-qmpsnap-commit-pivot-0a1b2c3d",
    ],
)
def test_parse_job_id_returns_none_when_the_name_is_not_ours(text):
    assert parse_job_id(text) is None


def test_transitions_lead_every_state_to_null():
    for start in set(JobStatus) - {JobStatus.NULL}:
        reached: set[JobStatus] = set()
        todo = [start]
        while todo:
            for state in TRANSITIONS[todo.pop()] - reached:
                reached.add(state)
                todo.append(state)
        assert JobStatus.NULL in reached, start


def test_transitions_allow_the_life_that_all_qemus_show():
    life = ["created", "running", "ready", "standby", "ready", "waiting", "pending", "concluded", "null"]
    for before, after in pairwise(life):
        assert JobStatus(after) in TRANSITIONS[JobStatus(before)]


def test_transitions_never_leave_aborting_for_success():
    assert TRANSITIONS[JobStatus.ABORTING] == {JobStatus.ABORTING, JobStatus.CONCLUDED}
    assert {JobStatus.CONCLUDED, JobStatus.NULL} == ENDED


def test_verbs_know_every_verb():
    assert set(VERBS) == set(JobVerb)


@each(
    ("verb", "status", "expected"),
    [
        (JobVerb.COMPLETE, "ready", True),
        (JobVerb.COMPLETE, "standby", True),
        (JobVerb.COMPLETE, "running", False),
        (JobVerb.CANCEL, "pending", True),
        (JobVerb.CANCEL, "concluded", False),
        (JobVerb.DISMISS, "concluded", True),
        (JobVerb.DISMISS, "ready", False),
        (JobVerb.FINALIZE, "pending", True),
        (JobVerb.RESUME, "waiting", False),
    ],
)
def test_verbs_are_taken_in_the_states_in_which_qemu_takes_them(verb, status, expected):
    assert (JobStatus(status) in VERBS[verb]) is expected


@each(
    ("job", "expected"),
    [
        (Job("j", "mirror", JobStatus.RUNNING, offset=1, length=4), 0.25),
        (Job("j", "mirror", JobStatus.RUNNING, offset=5, length=4), 1.0),
        (Job("j", "mirror", JobStatus.RUNNING), 0.0),
        (Job("j", "mirror", JobStatus.READY, ready=True), 1.0),
        (Job("j", "commit", JobStatus.CONCLUDED), 1.0),
    ],
)
def test_fraction_tells_what_is_done(job, expected):
    assert job.fraction == expected


def test_job_tells_its_operation_when_it_is_ours():
    job = Job("qmpsnap-mirror-copy-0a1b2c3d", "mirror", JobStatus.RUNNING)
    assert (job.mine, job.op, job.ending) == (True, "mirror", Ending.COPY)


def test_job_tells_nothing_when_it_is_not_ours():
    job = Job("drive-virtio0", "mirror", JobStatus.RUNNING)
    assert (job.mine, job.op, job.ending) == (False, None, None)


@each(
    ("io_status", "paused", "expected"),
    [
        (IoStatus.NOSPACE, True, True),
        (IoStatus.FAILED, True, True),
        (IoStatus.OK, True, False),
        (None, True, False),
        (IoStatus.NOSPACE, False, False),
    ],
)
def test_stopped_by_error_takes_a_pause_alone_for_nothing(io_status, paused, expected):
    job = Job("j", "mirror", JobStatus.PAUSED, io_status=io_status, paused=paused)
    assert job.stopped_by_error is expected
