from __future__ import annotations

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.job import IoStatus, Job, JobStatus
from qmpsnap.model.parse_jobs import JobEvent, parse_jobs
from qmpsnap.model.qapi import heard
from tests.each import each

# As QEMU 10.0 sent them, for a mirror whose target is full, policy `stop`.
JOB = {
    "current-progress": 3145728,
    "status": "paused",
    "total-progress": 16777216,
    "type": "mirror",
    "id": "m",
}
BLOCK_JOB = {
    "auto-finalize": True,
    "io-status": "nospace",
    "device": "m",
    "auto-dismiss": False,
    "busy": False,
    "len": 16777216,
    "offset": 3145728,
    "status": "paused",
    "paused": True,
    "speed": 0,
    "ready": False,
    "type": "mirror",
    "actively-synced": False,
}


def test_parse_jobs_joins_both_answers():
    expected = Job(
        "m",
        "mirror",
        JobStatus.PAUSED,
        offset=3145728,
        length=16777216,
        speed=0,
        io_status=IoStatus.NOSPACE,
        paused=True,
    )
    assert parse_jobs([JOB], [BLOCK_JOB]) == (expected,)


def test_parse_jobs_leaves_speed_unknown_when_it_is_no_block_job():
    (job,) = parse_jobs([JOB], [])
    assert (job.speed, job.io_status, job.paused) == (None, None, True)


def test_parse_jobs_keeps_the_error_text():
    (job,) = parse_jobs([{**JOB, "status": "concluded", "error": "No space left on device"}], [])
    assert (job.status, job.error) == (JobStatus.CONCLUDED, "No space left on device")


@each("status", ["ready", "standby"])
def test_parse_jobs_calls_a_job_ready_also_in_standby(status):
    (job,) = parse_jobs([{**JOB, "status": status}], [])
    assert job.ready


def test_parse_jobs_leaves_out_a_job_that_went_between_the_answers():
    assert parse_jobs([], [BLOCK_JOB]) == ()


@each(
    ("jobs", "block_jobs"),
    [
        ({}, []),
        (None, []),
        ("[]", []),
        ([1], []),
        ([JOB], None),
        ([JOB], [[]]),
        ([{**JOB, "status": "sleeping"}], []),
        ([{**JOB, "status": None}], []),
        ([{**JOB, "id": 3}], []),
        ([{**JOB, "current-progress": "much"}], []),
        ([{**JOB, "current-progress": True}], []),
        ([JOB], [{**BLOCK_JOB, "io-status": "tired"}]),
        ([JOB], [{**BLOCK_JOB, "speed": 1.5}]),
        ([JOB], [{}]),
    ],
)
def test_parse_jobs_raises_malformed_when_the_schema_is_broken(jobs, block_jobs):
    with pytest.raises(Malformed):
        parse_jobs(jobs, block_jobs)


@each(
    ("data", "event"),
    [
        ({"id": "j", "status": "ready"}, JobEvent("j", status=JobStatus.READY)),
        ({"device": "j", "action": "stop", "operation": "write"}, JobEvent(device="j", action="stop")),
        (
            {"device": "j", "len": 3, "offset": 2, "speed": 0},
            JobEvent(device="j", offset=2, length=3, speed=0),
        ),
        ({"id": "j", "status": "sleeping"}, None),
        ({"id": 7}, None),
    ],
)
def test_job_event_is_what_the_schema_knows(data, event):
    assert heard(JobEvent, data) == event
