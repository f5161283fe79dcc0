from __future__ import annotations

from qmpsnap.model.job import JobStatus
from qmpsnap.model.meaning.states import JOB_STATES


def test_every_state_of_a_job_has_a_meaning():
    assert list(JOB_STATES) == list(JobStatus)
