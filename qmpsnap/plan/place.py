"""Whether a name is free for a file that is to be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import TargetExists, TargetUnusable

if TYPE_CHECKING:
    from qmpsnap.plan.scene import Scene

__all__ = ["refuse_there"]


def refuse_there(scene: Scene, file: str, *, hint: str = "take another name") -> None:
    """Refuse when there is anything under the name of a file to be made, or that cannot be told.

    Args:
        scene: What lies on the disk.
        file: The file.
        hint: What the caller can do when there is.

    Raises:
        TargetExists: When there is anything of that name.
        TargetUnusable: When the name cannot be looked up, as one that is too long.
    """
    fact = scene.files.files[file]
    if fact.unseen:
        raise TargetUnusable(f"cannot make {file}: {fact.problem}", file=file, hint=fact.hint)
    if fact.taken:
        raise TargetExists(f"{file} exists already and was not touched", file=file, hint=hint)
