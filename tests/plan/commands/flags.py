"""What is written out of each builder in these tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

FLAGS = ("final", "writes", "pauses", "drains", "loads", "unseen", "restores", "owed")


def flags(step: Step) -> str:
    """The flags that are set, in the order of Step's fields."""
    return " ".join(name for name in FLAGS if getattr(step, name))
