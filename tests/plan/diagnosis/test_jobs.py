from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.job import IoStatus, Job, JobStatus
from qmpsnap.model.moments import Moments
from qmpsnap.model.record import Origin
from tests.plan.diagnosis.look import codes, facts, left, only

RECORD = left()
OURS = Job(RECORD.id, "stream", JobStatus.RUNNING)
THEIRS = Job('a "job"', "mirror", JobStatus.RUNNING)


def test_an_operation_whose_client_is_gone_is_finished() -> None:
    found = only(facts(operations=(RECORD,)))
    assert (found.code, found.subject) == ("operation-left", RECORD.id)
    assert found.remedy == ("qmpsnap", "job", "wait", RECORD.id)
    found = only(facts(operations=(RECORD,), jobs=(OURS,)))
    assert found.cause == "the client of stream of vda ended before it was finished, and its job is running"
    assert codes(facts(operations=(replace(RECORD, live=True),), jobs=(OURS,))) == []


def test_an_operation_that_needs_the_guest_is_finished_once_the_machine_runs() -> None:
    record = replace(RECORD, origin=Origin(True, "1-2"))
    found = only(facts(operations=(record,), status=None))
    assert (found.code, found.remedy) == ("operation-left", ())
    assert found.advice == f"start the machine, and then: qmpsnap job wait {record.id}"
    assert only(facts(operations=(record,))).remedy == ("qmpsnap", "job", "wait", record.id)


def test_a_job_of_ours_without_a_record_is_left_as_far_as_records_are_seen() -> None:
    unseen = Moments((), Frozen(), records_seen=False)
    assert codes(facts(jobs=(OURS,))) == [("operation-left", OURS.id)]
    assert codes(facts(jobs=(OURS,), moments=unseen)) == []
    ended = replace(OURS, status=JobStatus.CONCLUDED)
    assert codes(facts(jobs=(ended,), moments=unseen)) == [("operation-left", OURS.id)]


@pytest.mark.parametrize(("status", "word"), [(IoStatus.NOSPACE, "no space"), (IoStatus.FAILED, "I/O error")])
def test_a_job_that_an_error_paused_is_resumed(status: IoStatus, word: str) -> None:
    paused = {"status": JobStatus.PAUSED, "paused": True, "io_status": status}
    found = only(facts(jobs=(replace(THEIRS, **paused),)))
    assert (found.code, found.remedy) == ("job-stopped", ("qmpsnap", "job", "resume", 'a "job"', "--foreign"))
    assert word in found.cause
    found = only(facts(jobs=(replace(OURS, **paused),), operations=(RECORD,)))
    assert (found.code, found.remedy) == ("job-stopped", ("qmpsnap", "job", "resume", OURS.id))


def test_a_job_that_a_client_paused_is_resumed() -> None:
    found = only(facts(jobs=(replace(THEIRS, status=JobStatus.PAUSED, paused=True),)))
    assert (found.code, found.remedy[-2:]) == ("job-paused", ('a "job"', "--foreign"))
    paused = replace(OURS, status=JobStatus.STANDBY, paused=True)
    found = only(facts(jobs=(paused,), operations=(replace(RECORD, live=True),)))
    assert (found.code, found.remedy[-1]) == ("job-paused", OURS.id)


def test_another_s_job_that_ended_is_dismissed() -> None:
    found = only(facts(jobs=(replace(THEIRS, status=JobStatus.CONCLUDED, error="oops"),)))
    assert (found.code, found.is_trouble) == ("job-concluded", True)
    assert found.remedy == ("qmpsnap", "qmp", "job-dismiss", r'{"id": "a \"job\""}')
    assert "it failed (oops)" in found.cause


@pytest.mark.parametrize(
    ("status", "verb"), [(JobStatus.READY, "job-complete"), (JobStatus.PENDING, "job-finalize")]
)
def test_another_s_job_that_waits_for_its_client_is_no_trouble(status: JobStatus, verb: str) -> None:
    found = only(facts(jobs=(replace(THEIRS, status=status),)))
    assert (found.code, found.severity, found.remedy[2]) == ("job-waits", "limit", verb)
