"""Whether a file can be made: its name is free, and its directory has room for it."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable

from qmpsnap.errors import InvalidTarget, TargetExists, Unsupported
from qmpsnap.model.files import DirFact, Files
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.names import is_device_path
from qmpsnap.plan.scene import Scene

# An empty qcow2 image takes four clusters of 64 KiB; less room than that is no room.
_IMAGE_BYTES = 256 * 1024


def made_by_qemu(what: str) -> str:
    """Say that QEMU creates files, and who may read them: block/file-posix.c opens them with 0644."""
    return f"QEMU creates the {what}, mode 644 less its umask: its files are not visible from here"


def refuse_unseen(scene: Scene) -> None:
    """Refuse to have a file created where we do not see QEMU's files and QEMU cannot create it either."""
    if not scene.files.shared and not scene.features.devices:
        raise Unsupported(
            "overlays and copies cannot be created: the images are not visible from here, and a process "
            "without devices opens only files that exist",
            feature="creating images that are not visible",
            hint="run where they are visible",
        )


def refuse_barred(scene: Scene, file: str, what: str, *, hint: str) -> None:
    """Refuse to do on QEMU's word what QEMU's own user could not have done.

    Args:
        scene: The machine, and whose QEMU is.
        file: A layer, as QEMU names it.
        what: What would be done: "renamed".
        hint: What the caller can do instead.
    """
    why = scene.files.barred.get(file)
    if why is not None:
        raise InvalidTarget(f"{file} is not {what}: only QEMU names that file. {why}", file=file, hint=hint)


def refuse_there(scene: Scene, file: str, *, hint: str = "choose another name") -> None:
    """Refuse when a file that is to be created exists, or its name cannot be looked up, as one too long."""
    fact = scene.files.files[file]
    if fact.unseen:
        raise InvalidTarget(f"cannot create {file}: {fact.problem}", file=file, hint=fact.hint)
    if fact.kind == "directory":
        raise TargetExists(f"{file} is a directory", file=file, hint="name a file, which may be in it")
    if fact.taken:
        raise TargetExists(f"{file} exists already and was not touched", file=file, hint=hint)


def refuse_layer(scene: Scene, file: str, *, hint: str = "") -> None:
    """Refuse to create a file that is a layer of one of the machine's disks."""
    for disk in scene.graph.disks.values():
        if scene.files.same(file, *disk.files):
            raise TargetExists(f"{file} already is a layer of {disk.name}", file=file, hint=hint)


def refuse_unsearched(scene: Scene, places: Iterable[str], what: str, *, hint: str = "") -> None:
    """Refuse when images that are backed by `what` cannot be searched for in one of the directories."""
    searched = tuple(f"{place}: " for place in places)
    for where in scene.files.unreadable:
        if where.startswith(searched):
            raise InvalidTarget(
                f"cannot search for images backed by {what}: {where}",
                file=where,
                hint=f"run as a user who can read the directory{hint}",
            )


def other_disks(scene: Scene, disk: Disk, layer: Layer) -> list[str]:
    """The other disks that read the layer, each as "disk NAME"."""
    return [
        f"disk {other.name}"
        for other in scene.graph.disks.values()
        if other.name != disk.name and scene.files.same(layer.file, *other.files)
    ]


def images_on(
    graph: Graph, files: Files, layers: Iterable[str], *, without: Collection[str]
) -> tuple[str, ...]:
    """Images that are backed by one of the layers' files, by their canonical names.

    Args:
        graph: What QEMU has open.
        files: What lies on the disk; the layers were asked for.
        layers: The files.
        without: Files that are neither listed nor followed.
    """
    # QEMU reads these as raw disks: what a guest wrote to one looks like a header, and is none.
    raw = {
        files.real(layer.file)
        for disk in graph.disks.values()
        for layer in disk.layers
        if layer.format == "raw"
    }
    found = (
        file for layer in layers if layer.startswith("/") for file in files.backed_by(layer, without=without)
    )
    return tuple(file for file in dict.fromkeys(found) if file not in raw)


def refuse_place(scene: Scene, file: str, *, hint: str = "free some space there") -> None:
    """Refuse when an image cannot be created there: no directory, no permission, or no space."""
    where = usable_directory(scene, file)
    if where.free_bytes < _IMAGE_BYTES:
        raise InvalidTarget(
            f"no space left in {where.path}: {where.free_bytes} bytes free",
            file=file,
            hint=hint,
        )


def usable_directory(scene: Scene, file: str) -> DirFact:
    """The directory of a file that is to be created; refuse when it is missing or cannot be written."""
    where = scene.files.directories[posixpath.dirname(file)]
    if not where.exists:
        raise InvalidTarget(f"the directory {where.path} does not exist", file=file, hint="create it first")
    if not where.writable:
        raise InvalidTarget(f"the directory {where.path} cannot be written: {where.problem}", file=file)
    return where


def beside_active(disk: Disk, *, hint: str) -> str:
    """The directory of the disk's active layer, where files without a given name are created; or refuse."""
    active = disk.active
    if not active.local or is_device_path(active.file):
        raise InvalidTarget(
            f"the active layer of {disk.name} is not a file ({active.file}), so nothing can be created "
            "beside it",
            file=active.file,
            hint=hint,
        )
    return posixpath.dirname(active.file)
