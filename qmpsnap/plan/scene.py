"""All that a planner may know: the graph, the files, the jobs and what this QEMU can do."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qmpsnap.errors import Busy, InvalidTarget, Unsupported, WouldLose
from qmpsnap.model.find import find_layer
from qmpsnap.model.hints import LOAD_STATE, RUNS_AGAIN, command, frees, qmp
from qmpsnap.model.job import ENDED
from qmpsnap.model.names import is_device_path, is_owned_node, state_directory
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.checks.opened import odd
from qmpsnap.plan.steps import DeleteNode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qmpsnap.model.features import Features
    from qmpsnap.model.files import DirFact, Files
    from qmpsnap.model.graph import Chains, Disk, Graph, Layer
    from qmpsnap.model.job import Job
    from qmpsnap.model.machine import Machine, Status

__all__ = [
    "Scene",
    "beside_active",
    "delete_owned",
    "holders",
    "layer_index",
    "local_chains",
    "record_directories",
    "recorded_like",
    "refuse_any_job",
    "refuse_busy",
    "refuse_covered",
    "refuse_empty",
    "refuse_jobs",
    "refuse_loss",
    "refuse_migrated",
    "refuse_migrating",
    "refuse_place",
    "state_directories",
    "state_place",
    "state_questions",
    "unique",
    "usable_directory",
    "with_parents",
]

# The filter that each kind of job puts over the layer it works on; mirror_top serves both kinds.
_JOB_FILTERS = {
    "copy-on-read": frozenset({"stream"}),
    "commit_top": frozenset({"commit"}),
    "mirror_top": frozenset({"mirror", "commit"}),
    "copy-before-write": frozenset({"backup"}),
}


# Room for a record: a guest whose disk is full must not be refused the snapshot that rescues it.
_RECORD_BYTES = 64 * 1024

# An empty qcow2 image takes four clusters of 64 KiB; less room than that is no room.
_IMAGE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Scene:
    """What is, at the moment of planning.

    Attributes:
        graph: QEMU's block graph.
        files: What the planner asked about the file system.
        jobs: Every job that QEMU has, of any client.
        features: What this QEMU can do.
        now: Time of planning, UTC, ISO 8601, for records.
        state_dir: Where records go when the caller says so, else "".
        machine: What the machine is beyond its disks; None where the plan does not depend on it.
        standing: Whether it runs or migrates; None where `machine` says it, or nothing depends on it.
    """

    graph: Graph
    files: Files
    jobs: tuple[Job, ...]
    features: Features
    now: str
    state_dir: str = ""
    machine: Machine | None = None
    standing: Status | None = None

    @property
    def names(self) -> frozenset[str]:
        """Names that are in use: nodes, jobs and records."""
        records = (record.id for record in self.files.records if isinstance(record, IntentRecord))
        return frozenset((*self.graph.nodes, *(job.id for job in self.jobs), *records))


def state_directories(disk: Disk, state_dir: str) -> tuple[str, ...]:
    """Where records of this disk may lie, the preferred place first.

    Beside the base image; where that directory cannot be written, beside the next layer up. Last comes
    each layer's own place: it becomes the base image's when a stream leaves nothing below it.
    """
    if state_dir:
        return (state_dir,)
    return _places(disk.base.file, [layer.file for layer in reversed(disk.layers) if layer.local])


def record_directories(record: IntentRecord) -> tuple[str, ...]:
    """Where the record of an operation may lie: beside the chains of before, then those of after."""
    chains = (files for files in (*record.chains.values(), *record.after.values()) if files)
    return unique(
        (*(place for files in chains for place in _places(files[-1], files[::-1])), record.directory)
    )


def _places(base: str, files: Sequence[str]) -> tuple[str, ...]:
    name = posixpath.basename(state_directory(base))
    files = [file for file in files if not is_device_path(file)]
    places = [posixpath.join(posixpath.dirname(file), name) for file in files]
    places += [state_directory(file) for file in files]
    return tuple(dict.fromkeys(place for place in places if place.startswith("/")))


def state_place(scene: Scene, disk: Disk) -> str:
    """The directory that takes our records, or "" when none can be written."""
    if not scene.files.shared and not scene.state_dir:
        return ""
    facts = scene.files.directories
    for place in state_directories(disk, scene.state_dir):
        own, parent = facts.get(place), facts.get(posixpath.dirname(place))
        where = own if own is not None and own.exists else parent
        if where is not None and where.writable and where.free_bytes >= _RECORD_BYTES:
            return place
    return ""


def state_questions(graph: Graph, state_dir: str) -> tuple[str, ...]:
    """Directories in which records of any of the disks may lie."""
    return unique(
        place for disk in graph.disks.values() if disk.layers for place in state_directories(disk, state_dir)
    )


def with_parents(places: Iterable[str]) -> tuple[str, ...]:
    """The directories and those that they lie in: what `state_place` has to know of."""
    return unique(one for place in places for one in (place, posixpath.dirname(place)))


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
    """Refuse when a job holds the disk's chain.

    Raises:
        Busy: Naming the job, or each that it may be.
    """
    found = holders(scene, disk)
    if not found:
        return
    named = " or ".join(f"job {job.id!r} ({job.type}, {job.status.value})" for job in found)
    raise Busy(
        f"the chain of {disk.name} is held by {named}",
        node=disk.active.node,
        job_id=found[0].id,
        hint=_wait_or_stop(found[0])
        if len(found) == 1
        else "QEMU does not tell which of them it is; qmpsnap jobs lists them",
    )


def refuse_any_job(scene: Scene) -> None:
    """Refuse while a job is running, on whichever disk and of whichever client.

    Raises:
        Busy: Naming the first.
    """
    refuse_jobs(scene.jobs)


def refuse_jobs(jobs: Iterable[Job]) -> None:
    """Refuse while one of the jobs is running.

    Raises:
        Busy: Naming the first.
    """
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


def refuse_migrated(scene: Scene) -> None:
    """Refuse what writes into images or moves a disk while QEMU has given them up, or is about to.

    Raises:
        Unsupported: When its VM state was saved or sent away, or is still to come in.
        Busy: When a migration is running.
    """
    stands = scene.machine.stands if scene.machine is not None else scene.standing
    if stands is None:
        return
    feature = f"work on disks and VM state in run state {stands.state!r}"
    if stands.state == "postmigrate":
        raise Unsupported(
            "the guest's state was saved or migrated away, and QEMU has deactivated its images",
            feature=feature,
            hint=f"resume it first: {RUNS_AGAIN}",
        )
    if stands.incoming:
        raise Unsupported("QEMU waits for VM state", feature=feature, hint=LOAD_STATE)
    refuse_migrating(stands)


def refuse_migrating(machine: Machine | Status) -> None:
    """Refuse while a migration is running, whoever began it.

    Raises:
        Busy: Always then.
    """
    if machine.migrating:
        raise Busy(
            f"a migration is running ({machine.migration}); the destination QEMU was started on "
            "the present files",
            node="",
            job_id="",
            hint=f"wait until it ends, or cancel it: {qmp('migrate_cancel')}",
        )


def refuse_empty(disk: Disk) -> Disk:
    """Return the disk when it has a medium.

    Raises:
        Unsupported: When the drive is empty.
    """
    if not disk.layers:
        raise Unsupported(f"disk {disk.name!r} has no medium", feature="a chain in an empty drive")
    return disk


def refuse_place(scene: Scene, file: str, *, hint: str = "free some space there") -> None:
    """Refuse when a new image cannot be made under that path.

    Args:
        scene: What lies on the disk.
        file: The image.
        hint: What the caller can do when there is no room.

    Raises:
        InvalidTarget: When its directory is missing, may not be written, or has no room for an empty image.
    """
    where = usable_directory(scene, file)
    if where.free_bytes < _IMAGE_BYTES:
        raise InvalidTarget(
            f"no space left in {where.path}: {where.free_bytes} bytes free",
            file=file,
            hint=hint,
        )


def usable_directory(scene: Scene, file: str) -> DirFact:
    """The directory of a file that is to be made; how much room the file needs is the caller's to know.

    Raises:
        InvalidTarget: When it is missing or may not be written.
    """
    where = scene.files.directories[posixpath.dirname(file)]
    if not where.exists:
        raise InvalidTarget(f"the directory {where.path} does not exist", file=file, hint="create it first")
    if not where.writable:
        raise InvalidTarget(f"the directory {where.path} cannot be written: {where.problem}", file=file)
    return where


def beside_active(disk: Disk, *, hint: str) -> str:
    """The directory of the disk's active layer, where files that nobody named go.

    Args:
        disk: The disk.
        hint: What to say instead when there is none.

    Raises:
        InvalidTarget: When the active layer is no file.
    """
    active = disk.active
    if not active.local or is_device_path(active.file):
        raise InvalidTarget(
            f"the active layer of {disk.name} is not a file ({active.file}), so nothing can be created "
            "beside it",
            file=active.file,
            hint=hint,
        )
    return posixpath.dirname(active.file)


def layer_index(scene: Scene, disk: Disk, spelling: str) -> int:
    """Index of the layer that somebody means, snapshots' recorded names included."""
    moments = {
        record.name: record.overlays[disk.name]
        for record in scene.files.records
        if isinstance(record, MomentRecord)
        and not record.deleted
        and record.overlays.get(disk.name) in disk.files
    }
    return find_layer(disk, spelling, moments=moments)


def recorded_like(scene: Scene, overlay: Layer, below: Sequence[Layer]) -> str | None:
    """How the overlay's header shall name its new backing file; None: as QEMU does, by the name it has.

    A chain whose headers hold relative names can be moved as a whole; QEMU would write the full path. A
    name that QEMU has from a command line, relative to another directory or a descriptor, leads nowhere
    from the overlay: then it is the path of the file that QEMU has open.

    Args:
        scene: What is.
        overlay: The layer whose header is written.
        below: The layers that it is to stand on, the next one first; none: nothing is recorded.
    """
    if not below or not below[0].local or not overlay.file.startswith("/"):
        return None
    base = below[0]
    recorded = overlay.backing
    if recorded is not None and not recorded.startswith("/") and ":" not in recorded:
        return posixpath.relpath(base.file, posixpath.dirname(overlay.file))
    return base.file if odd(scene.graph, below) else None


def delete_owned(layers: Iterable[Layer]) -> tuple[DeleteNode, ...]:
    """The steps that free the nodes among these layers that we added ourselves."""
    return tuple(DeleteNode(layer.node) for layer in layers if is_owned_node(layer.node))


def refuse_loss(
    layers: Iterable[Layer], *, allowed: bool, hint: str = "discard it with --discard-internal"
) -> None:
    """Refuse when a layer that leaves the chain holds what only it can hold.

    Raises:
        WouldLose: Naming internal snapshots and persistent bitmaps.
    """
    what = []
    for layer in layers:
        what += [f"internal snapshot {one.name!r} of {layer.file}" for one in layer.snapshots]
        what += [f"persistent bitmap {one.name!r} of {layer.file}" for one in layer.bitmaps if one.persistent]
    if what and not allowed:
        raise WouldLose(f"this would be lost: {'; '.join(what)}", what=what, hint=hint)


def local_chains(chains: Chains) -> Chains:
    """The same chains, without what is no file on the host: records name files alone."""
    return {disk: tuple(file for file in files if file.startswith("/")) for disk, files in chains.items()}


def refuse_covered(scene: Scene, disk: Disk) -> None:
    """Refuse when a node that no disk uses stands on the active layer: QEMU then takes it for no root.

    Such nodes are what an embedder's blockdev-add leaves behind after a pivot.

    Raises:
        Busy: Naming the node.
    """
    used = {layer.node for other in scene.graph.disks.values() for layer in other.layers}
    for node in scene.graph.nodes.values():
        if node.backing and node.backing == disk.active.file and node.name not in used and not node.is_filter:
            raise Busy(
                f"node {node.name!r} ({node.file}) uses the active layer of {disk.name}, and nothing uses it",
                node=node.name,
                job_id="",
                hint=f"remove it first: {frees(node.name)}",
            )


def unique(paths: Iterable[str]) -> tuple[str, ...]:
    """The same paths without repetition, in order."""
    return tuple(dict.fromkeys(paths))
