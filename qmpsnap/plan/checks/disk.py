"""What keeps an operation from a disk: no medium, what would be lost, jobs, migrations, unused nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qmpsnap.errors import Busy, Unsupported, WouldLose
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph, Layer, Node
from qmpsnap.model.hints import LOAD_STATE, RUNS_AGAIN, command, frees, qmp
from qmpsnap.model.job import ENDED, Job
from qmpsnap.model.machine import Status
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.checks.backups import refuse_read
from qmpsnap.plan.scene import Scene

_HINT = "attach it read-write, or shut the machine off and work on its images"


def refuse_empty(disk: Disk) -> Disk:
    """Return the disk; refuse when the drive is empty."""
    if not disk.layers:
        raise Unsupported(f"disk {disk.name!r} has no medium", feature="a chain in an empty drive")
    return disk


def refuse_read_only(disk: Disk, what: str, *, hint: str = _HINT) -> None:
    """Refuse to change the files of a disk that is attached read-only: others may read them as well.

    Args:
        disk: The disk.
        what: The operation, as a noun.
        hint: What can be done instead.
    """
    if disk.layers and disk.read_only:
        raise Unsupported(
            f"disk {disk.name!r} is read-only",
            feature=f"{what} of a read-only disk",
            hint=hint,
        )


def refuse_loss(
    layers: Iterable[Layer], *, allowed: bool, hint: str = "discard it with --discard-internal"
) -> None:
    """Refuse when internal snapshots or persistent bitmaps would leave the chain with a layer."""
    what = []
    for layer in layers:
        bitmaps = (bitmap for bitmap in layer.bitmaps if bitmap.persistent)
        what += [f"internal snapshot {snapshot.name!r} of {layer.file}" for snapshot in layer.snapshots]
        what += [f"persistent bitmap {bitmap.name!r} of {layer.file}" for bitmap in bitmaps]
    if what and not allowed:
        raise WouldLose(f"this would be lost: {'; '.join(what)}", what=what, hint=hint)


# The filter that each kind of job puts over the layer it works on; mirror_top serves both kinds.
_JOB_FILTERS = {
    "copy-on-read": frozenset({"stream"}),
    "commit_top": frozenset({"commit"}),
    "mirror_top": frozenset({"mirror", "commit"}),
    "copy-before-write": frozenset({"backup"}),
}


def holders(scene: Scene, disk: Disk) -> tuple[Job, ...]:
    """Jobs that hold a node of the disk's chain.

    QEMU lists no nodes with a job. A job named after the disk's drive holds that; every other block
    job puts a filter over the layer it works on, whose file name is that of the layer. Of two jobs of
    one kind on two disks each is a candidate for both, unless its record names its disk.
    """
    paths = set(disk.files)
    kinds: set[str] = set()
    for node in scene.graph.nodes.values():
        if node.driver in _JOB_FILTERS and node.file in paths:
            kinds |= _JOB_FILTERS[node.driver]
    elsewhere = {
        record.id
        for record in scene.files.records
        if isinstance(record, IntentRecord) and disk.name not in record.chains
    }
    return tuple(
        job
        for job in scene.jobs
        if job.status not in ENDED
        and job.id not in elsewhere
        and (job.type in kinds or (disk.drive and job.id == disk.drive))
    )


def refuse_busy(scene: Scene, disk: Disk) -> None:
    """Refuse when a job holds the disk's chain, naming each job that it may be."""
    jobs = holders(scene, disk)
    if not jobs:
        return
    named = " or ".join(f"job {job.id!r} ({job.type}, {job.status.value})" for job in jobs)
    raise Busy(
        f"the chain of {disk.name} is held by {named}",
        node=disk.active.node,
        job_id=jobs[0].id,
        hint=_wait_or_stop(jobs[0])
        if len(jobs) == 1
        else "QEMU does not tell which of them it is; qmpsnap jobs lists them",
    )


def refuse_jobs(jobs: Iterable[Job]) -> None:
    """Refuse while one of the jobs is running."""
    for job in jobs:
        if job.status not in ENDED:
            raise Busy(
                f"job {job.id!r} ({job.type}, {job.status.value}) is running",
                node="",
                job_id=job.id,
                hint=_wait_or_stop(job),
            )


def _wait_or_stop(job: Job) -> str:
    named = (job.id,) if job.mine else (job.id, "--foreign")
    return f"wait for it ({command('job', 'wait', *named)}) or stop it ({command('job', 'cancel', *named)})"


def refuse_in_use(scene: Scene, disk: Disk) -> None:
    """Refuse when a job holds the disk's chain, or an unused node is an overlay of its active layer.

    QEMU then takes that layer for no root. An embedder's blockdev-add leaves such a node after a pivot.
    """
    refuse_busy(scene, disk)
    for node in unused_overlays(scene.graph, disk):
        raise Busy(
            f"node {node.name!r} ({node.file}) uses the active layer of {disk.name}, and nothing uses it",
            node=node.name,
            job_id="",
            hint=f"remove it first: {frees(node.name)}",
        )


def ask_viewed(layers: Iterable[Layer]) -> Ask:
    """What `refuse_viewed` has to know."""
    return Ask(readers=tuple((layer.file, "") for layer in layers if layer.local))


def refuse_viewed(scene: Scene, files: Iterable[str]) -> None:
    """Refuse to write into a layer, or to remove it, while a client of ours reads a moment through it."""
    for file in files:
        if (file, "") in scene.files.readers:
            refuse_read(scene, file)
            raise Busy(
                f"a snapshot is being read from {file} (qmpsnap open, or backup run)",
                node="",
                job_id="",
                hint="end that command first",
            )


def unused_overlays(graph: Graph, disk: Disk) -> Iterator[Node]:
    """Nodes that are backed by the disk's active layer and that no disk uses."""
    used = {layer.node for other in graph.disks.values() for layer in other.layers}
    for node in graph.nodes.values():
        if node.backing and node.backing == disk.active.file and node.name not in used and not node.is_filter:
            yield node


def refuse_migrated(status: Status) -> None:
    """Refuse to write into images, or to move a disk, while QEMU does not own its images.

    Its VM state was saved or migrated away, has yet to come in, or a migration is running.
    """
    feature = f"work on disks and VM state in run state {status.state!r}"
    if status.state == "postmigrate":
        raise Unsupported(
            "the guest's state was saved or migrated away, and QEMU has deactivated its images",
            feature=feature,
            hint=f"resume it first: {RUNS_AGAIN}",
        )
    if status.incoming:
        raise Unsupported("QEMU waits for VM state", feature=feature, hint=LOAD_STATE)
    refuse_migrating(status)


def refuse_migrating(status: Status) -> None:
    """Refuse while a migration is running, whoever started it."""
    if status.migrating:
        raise Busy(
            f"a migration is running ({status.phase}); the destination QEMU was started on the present files",
            node="",
            job_id="",
            hint=f"wait until it ends, or cancel it: {qmp('migrate_cancel')}",
        )
