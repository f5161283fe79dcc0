"""Plan of a mirror: a copy elsewhere that follows the guest's writes, and to which the disk may pivot.

We create the copy's file, empty and exclusively; QEMU then formats it with the right size and backing file.
sync "none" must not be given an existing image: its pivot would lose the disk's data without an error from
QEMU (docs/explanation/qemu.md).
"""

from __future__ import annotations

import posixpath

from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, UnsafeImage, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.hints import command
from qmpsnap.model.names import digest, job_id, node_name
from qmpsnap.model.step import Root, Stage, Step
from qmpsnap.plan.chain.layers import delete_owned
from qmpsnap.plan.chain.lineage import kept_found, left_behind
from qmpsnap.plan.checks.disk import refuse_empty, refuse_in_use, refuse_loss
from qmpsnap.plan.checks.encryption import encryption_notes, refuse_clear_data, secret_for
from qmpsnap.plan.checks.opened import odd, refuse_inner, refuse_moved, refuse_temporary
from qmpsnap.plan.checks.place import made_by_qemu, refuse_layer, refuse_place, refuse_there, refuse_unseen
from qmpsnap.plan.commands.block import blockdev_add, probe_absent
from qmpsnap.plan.commands.files import LuksHeader, create_file, create_image, create_overlay
from qmpsnap.plan.commands.jobs import copied_and_ended, job_dismiss, mirror_job
from qmpsnap.plan.effect import apply_all
from qmpsnap.plan.intent import Mirror
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import state_directories, state_place, with_parents
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import Scene


def ask(intent: Mirror, graph: Graph, state_dir: str) -> Ask:
    """What the planner wants to know about the target and its directory."""
    disk = refuse_empty(find_disk(graph, intent.disk))
    records = state_directories(_copied(intent, disk), state_dir)
    return Ask(
        files=(*(file for file in disk.files if file.startswith("/")), intent.target),
        directories=(posixpath.dirname(intent.target), *with_parents(records)),
        records=records,
    )


def plan(intent: Mirror, scene: Scene) -> Plan:
    """Plan one drive-mirror with its ending; or refuse.

    Raises:
        NotFound: When there is no such disk.
        Busy: When a job holds the chain.
        TargetExists: When the target exists.
        InvalidTarget: When it cannot be created there, or one that exists does not fit.
        WouldLose: When the pivot would leave internal snapshots or persistent bitmaps behind.
        Unsupported: When `sync` does not go with the rest.
    """
    disk = refuse_empty(find_disk(scene.graph, intent.disk))
    pivot = intent.ending == "pivot"
    # Of an encrypted disk only a qcow2 copy can be encrypted, whatever its own format is.
    form = intent.format or ("qcow2" if disk.active.encrypted else disk.active.format)
    copied = disk.layers[: {"full": len(disk.layers), "top": 1, "none": 0}[intent.sync]]
    below = disk.layers[len(copied) :]
    _refuse(intent, scene, disk, form, copied=copied, below=below)
    secret, luks = _secret(intent, scene, copied, form)
    formatted = scene.features.devices and not secret  # by QEMU, which opens it by itself then
    read = copied or disk.layers[:1]
    refuse_clear_data(read, intent.target, plain=intent.plain, encrypted=secret != "")

    token = digest(
        "mirror", disk.name, disk.files, intent.target, intent.ending, intent.sync, form, avoid=scene.names
    )
    copy = Root(
        disk=disk.name,
        node=node_name(digest(token, "target", avoid=scene.names), owned=not formatted),
        file=intent.target,
        format=form,
        backing=below[0].file if below else None,
        chain=tuple((layer.file, layer.format) for layer in below),
        secret=secret,
    )
    start = mirror_job(
        job=job_id("mirror", "pivot" if pivot else "copy", token),
        root=disk.root,
        replaces=disk.active.node if disk.root != disk.active.node else None,
        copy=copy,
        sync=intent.sync,
        opens=("existing" if intent.use_existing else "absolute-paths") if formatted else None,
        on_error=intent.on_error,
        speed=intent.speed,
    )
    make = () if intent.use_existing else (_make(scene, disk, token, copy, luks),)
    opened = () if formatted else (_open(copy, disk, below),)
    # The record has to be found beside the base image of before and, where the copy becomes that, of after.
    place = state_place(scene, disk)
    moves_base = pivot and intent.sync == "full" and place
    places = place, state_place(scene, _copied(intent, disk)) if moves_base else ""
    finish = finished(start.job_id, *places)
    mirror = copied_and_ended(start, pivot=pivot)
    # No chain tells that a copy is whole: the job does, until the record needs it no more.
    ended = () if pivot else (*(back for step in opened for back in step.undo), *finish)
    left = delete_owned(copied) if pivot else ()
    found, unfound = kept_found(scene, apply_all(scene.graph, mirror))
    stay = left_behind(scene, disk, disk.files[: len(copied)]) if pivot else ()
    unseen = () if scene.files.shared else (made_by_qemu("target"),)
    plan = Plan(
        op="mirror",
        intent=intent,
        disks=(disk.name,),
        stages=(
            Stage("create the target", (*make, *opened)),
            Stage(f"mirror to {copy.file}", (*mirror, *ended, job_dismiss(start.job_id)), verify=True),
            Stage("clean up", (*left, *found, *(finish if pivot else ())), tidy=True),
        ),
        before=scene.graph,
        moves=(disk.name,) if pivot else (),
        notes=(*unseen, *stay, *unfound, *encryption_notes((copy,))),
    )
    return recorded(plan, *places, id=start.job_id, created=scene.now)


def _secret(
    intent: Mirror, scene: Scene, copied: tuple[Layer, ...], form: str
) -> tuple[str, LuksHeader | None]:
    """As `secret_for`, of the copy; neither where it is not encrypted."""
    secret, luks = secret_for(copied, scene.files)
    prepared = intent.use_existing and secret and not scene.files.files[intent.target].luks
    if not secret or intent.plain or form != "qcow2" or prepared:
        return "", None
    scene.features.need("blockdev-add", "blockdev-del", "blockdev-mirror")
    return secret, luks


def _make(scene: Scene, disk: Disk, token: str, copy: Root, luks: LuksHeader | None) -> Step:
    """What creates the copy's file, or shows that QEMU will create it."""
    size, like = disk.active.virtual_size, _like(scene, disk)
    refuse_unseen(scene)
    if not scene.files.shared:
        return probe_absent(copy.file, node_name(token, owned=True))
    if scene.features.devices and luks is None:
        return create_file(copy.file, like)
    if copy.backing is None:
        return create_image(copy.file, like, size_bytes=size, format=copy.format, luks=luks)
    form = copy.chain[0][1]
    return create_overlay(
        copy.file, size_bytes=size, backing=copy.backing, backing_format=form, like=like, luks=luks
    )


def _open(copy: Root, disk: Disk, below: tuple[Layer, ...]) -> Step:
    """Open a copy as drive-mirror opens others: as the disk is, on the layers that stay."""
    return blockdev_add(
        copy.node,
        copy.file,
        copy.format,
        backing=below[0].node if below else None,
        io=replace(disk.active.io, detect_zeroes="off"),
        unmap=True,
        secret=copy.secret,
    )


def _refuse_compress(disk: Disk) -> None:
    """Refuse a disk under a compress filter: QEMU 10.0 and 11.1 hang when its mirror starts."""
    for one in disk.filters:
        if one.driver == "compress":
            raise Unsupported(
                f"{disk.name} is under the filter {one.node!r} (compress), and QEMU may hang in its mirror",
                feature="mirror under a compress filter",
                hint=f"copy it by {command('backup', 'run', 'DIR', '--disk', disk.name)}",
            )


def _refuse(
    intent: Mirror,
    scene: Scene,
    disk: Disk,
    form: str,
    *,
    copied: tuple[Layer, ...],
    below: tuple[Layer, ...],
) -> None:
    """Refuse what QEMU cannot copy as asked, a target that does not fit, and what would be lost.

    Args:
        intent: What is asked for.
        scene: What is.
        disk: The disk.
        form: Format of the copy.
        copied: The layers that the copy holds the data of; a pivot leaves them behind.
        below: The layers that the copy is backed by.
    """
    refuse_temporary(scene, disk)
    refuse_moved(scene, disk, below)  # what is copied is read from the file that QEMU has open
    mirror = "drive-mirror" if scene.features.devices else "blockdev-mirror"
    scene.features.need(mirror, "job-complete", "job-dismiss", "job-cancel", "block-job-cancel")
    _check_sync(intent, disk, form)
    _refuse_compress(disk)
    refuse_inner(
        disk,
        [layer for layer in copied if layer.inner != layer.format]
        if intent.sync == "full"
        else disk.layers[:2],
    )
    if odd(scene.graph, below):
        raise Unsupported(
            f"QEMU would record its own name of {below[0].file} in the copy, where that name leads nowhere",
            feature=f"sync {intent.sync} over a file that QEMU knows by a relative name or a descriptor",
            hint="copy the whole disk: --sync full",
        )
    if intent.ending == "pivot" and disk.read_only:
        raise Unsupported(f"disk {disk.name!r} is read-only", feature="pivot of a read-only disk")
    refuse_in_use(scene, disk)
    if intent.ending == "pivot":
        refuse_loss(copied, allowed=intent.discard_internal)
    _check_target(intent, scene, disk, form)


def _copied(intent: Mirror, disk: Disk) -> Disk:
    """The disk as it is when only the copy is left of its chain."""
    return replace(disk, layers=(replace(disk.active, file=intent.target, local=True),))


def _like(scene: Scene, disk: Disk) -> str:
    """The file whose owner the copy gets: where QEMU's file is now; "": it has no name."""
    fact = scene.files.open.get(disk.active.file)
    return disk.active.file if fact is None or fact.state in {"same", "unknown"} else fact.path


def _check_sync(intent: Mirror, disk: Disk, form: str) -> None:
    if form not in {"raw", "qcow2"}:
        raise Unsupported(
            f"a copy in format {form!r} is not supported",
            feature=f"mirror to {form}",
            hint="use --format qcow2, or raw",
        )
    if intent.sync == "none" and intent.ending == "finish":
        raise Unsupported(
            "sync none copies only new writes: what --finish would leave is not a copy of the disk",
            feature="sync none",
        )
    if intent.sync == "none" and intent.use_existing:
        raise Unsupported(
            "sync none onto an existing image would lose the disk's data at the pivot",
            feature="sync none",
            hint="omit --use-existing to have the image created",
        )
    stands = intent.sync == "none" or (intent.sync == "top" and len(disk.layers) > 1)
    if stands and form == "raw":
        raise Unsupported(
            f"sync {intent.sync} needs a backing file, and raw has none", feature=f"sync {intent.sync}"
        )


def _check_target(intent: Mirror, scene: Scene, disk: Disk, form: str) -> None:
    target = intent.target
    refuse_layer(scene, target, hint="a copy needs a file of its own")
    if not scene.files.shared:
        if intent.use_existing:
            raise Unsupported(
                f"size and backing of {target} cannot be checked: QEMU's files are not visible from here",
                feature="use_existing",
                hint="omit --use-existing to have the image created",
            )
        return
    if intent.use_existing:
        _check_existing(intent, scene, disk, form)
        return
    refuse_there(scene, target, hint="choose another name, or --use-existing")
    refuse_place(scene, target, hint="free some space there, or choose another TARGET")


def _check_existing(intent: Mirror, scene: Scene, disk: Disk, form: str) -> None:
    target, fact = intent.target, scene.files.files[intent.target]
    if fact.kind not in {"regular", "block"}:
        raise InvalidTarget(f"{target} is {fact.kind}: {fact.problem or 'not an image'}", file=target)
    if fact.problem:
        raise InvalidTarget(f"{target}: {fact.problem}", file=target)
    header = fact.header
    if (header.format if header else "raw") != form:
        raise InvalidTarget(f"{target} is {header.format if header else 'raw'}, not {form}", file=target)
    size = header.virtual_size if header else fact.size
    if size != disk.active.virtual_size:
        raise InvalidTarget(
            f"{target} has {size} bytes, {disk.name} has {disk.active.virtual_size}",
            file=target,
            hint="a mirror needs a target of the disk's size",
        )
    if header is not None and header.data_file is not None:
        raise UnsafeImage(f"{target} keeps its data in another file ({header.data_file!r})", file=target)
    below = disk.layers[1].file if intent.sync == "top" and len(disk.layers) > 1 else None
    backing = fact.backing if header is not None and header.backing is not None else None
    expected = scene.files.real(below) if below else None
    if backing != expected or (header is not None and header.backing is not None and backing is None):
        recorded = header.backing if header else None
        raise InvalidTarget(
            f"{target} has the backing file {recorded!r}, not {below!r}",
            file=target,
            hint="the guest would read other data after the pivot",
        )
