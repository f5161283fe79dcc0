"""Whether a file can be made: its name is free, and its directory has room for it."""

from __future__ import annotations

import posixpath

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk
from qmpsnap.model.names import is_device_path
from qmpsnap.plan.scene import Scene

# An empty qcow2 image takes four clusters of 64 KiB; less room than that is no room.
_IMAGE_BYTES = 256 * 1024


def made_by_qemu(what: str) -> str:
    """Say that QEMU makes files, and who may read them. block/file-posix.c: raw_co_create opens with 0644."""
    return f"QEMU creates the {what}, mode 644 less its umask: its files are not visible from here"


def refuse_barred(scene: Scene, file: str, what: str, *, hint: str) -> None:
    """Refuse to do, on QEMU's word, what QEMU's own user could not have done.

    Args:
        scene: What lies on the disk, and whose QEMU is.
        file: A layer, as QEMU names it.
        what: What would be done: "renamed".
        hint: What the caller can do instead.

    Raises:
        InvalidTarget: Naming both users.
    """
    why = scene.files.barred.get(file)
    if why is not None:
        raise InvalidTarget(f"{file} is not {what}: only QEMU names that file. {why}", file=file, hint=hint)


def refuse_there(scene: Scene, file: str, *, hint: str = "choose another name") -> None:
    """Refuse when there is anything under the name of a file to be made, or that cannot be told.

    Args:
        scene: What lies on the disk.
        file: The file.
        hint: What the caller can do when there is.

    Raises:
        TargetExists: When there is anything of that name.
        InvalidTarget: When the name cannot be looked up, as one that is too long.
    """
    fact = scene.files.files[file]
    if fact.unseen:
        raise InvalidTarget(f"cannot create {file}: {fact.problem}", file=file, hint=fact.hint)
    if fact.taken:
        raise TargetExists(f"{file} exists already and was not touched", file=file, hint=hint)


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
