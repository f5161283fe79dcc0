"""Whether a name is free for a file that is to be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import InvalidTarget, TargetExists

if TYPE_CHECKING:
    from qmpsnap.plan.scene import Scene

__all__ = ["made_by_qemu", "refuse_barred", "refuse_there"]


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
