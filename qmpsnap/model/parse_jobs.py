"""Jobs from QEMU's replies."""

from __future__ import annotations

from msgspec import field
from msgspec.structs import replace

from qmpsnap.model.job import IoStatus, Job, JobStatus
from qmpsnap.model.qapi import Reply, read


class JobInfo(Reply, frozen=True):
    """A job. QAPI: query-jobs."""

    id: str
    type: str
    status: JobStatus
    current_progress: int
    total_progress: int
    error: str | None = None


class BlockJobInfo(Reply, frozen=True):
    """A block job. QAPI: query-block-jobs."""

    device: str
    speed: int
    io_status: IoStatus


class JobEvent(Reply, frozen=True):
    """An event of a job; each kind has some of these. Of BLOCK_JOB_ events only BLOCK_JOB_PENDING has `id`.

    QAPI: JOB_STATUS_CHANGE (job.json), BLOCK_JOB_... (block-core.json).
    """

    id: str = ""
    device: str = ""
    status: JobStatus | None = None
    action: str = ""
    error: str | None = None
    type: str = ""
    offset: int | None = None
    length: int | None = field(default=None, name="len")
    speed: int | None = None


def parse_jobs(query_jobs: object, query_block_jobs: object) -> tuple[Job, ...]:
    """Join both replies into jobs, in QEMU's order.

    `query-jobs` lists the jobs. A block job that is only in the other reply began or ended between the two,
    and is left out.

    Args:
        query_jobs: What `query-jobs` returned.
        query_block_jobs: What `query-block-jobs` returned; an empty list leaves `speed` and `io_status` None.

    Raises:
        Malformed: When a reply does not have the schema's shape.

    QAPI: query-jobs (job.json), query-block-jobs (block-core.json).
    """
    block_jobs = {
        info.device: info for info in read(list[BlockJobInfo], query_block_jobs, "query-block-jobs")
    }
    return tuple(
        _job(info, block_jobs.get(info.id)) for info in read(list[JobInfo], query_jobs, "query-jobs")
    )


def _job(info: JobInfo, block: BlockJobInfo | None) -> Job:
    job = Job(
        id=info.id,
        type=info.type,
        status=info.status,
        offset=info.current_progress,
        length=info.total_progress,
        error=info.error,
        paused=info.status in {JobStatus.PAUSED, JobStatus.STANDBY},
        ready=info.status in {JobStatus.READY, JobStatus.STANDBY},
    )
    return job if block is None else replace(job, speed=block.speed, io_status=block.io_status)
