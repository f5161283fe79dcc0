"""Steps on checkpoints inside images, through the human monitor. Part of the vocabulary in steps.py.

QEMU answers nothing when it succeeds, and text when it fails; there are no error replies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qmpsnap.plan.job_steps import QmpStep

__all__ = ["DelVm", "HmpStep", "LoadVm", "SaveVm"]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class SaveVm(QmpStep):
    """Stop the guest, keep VM state and disks inside the images, and let it go on. HMP: savevm.

    An equal name would be replaced without a word, on every disk.

    Attributes:
        name: What the checkpoint is called.
        disks: The disks that QEMU takes: every writable one.
    """

    name: str
    disks: tuple[str, ...]
    command: ClassVar[str] = "human-monitor-command"

    @property
    def arguments(self) -> Arguments:
        """The line for the human monitor."""
        return {"command-line": f"savevm {quoted(self.name)}"}


@dataclass(frozen=True, slots=True)
class LoadVm(QmpStep):
    """Go back to a checkpoint; a guest that ran runs on, one that was paused stays so. HMP: loadvm.

    Attributes:
        name: The checkpoint's name.
    """

    name: str
    command: ClassVar[str] = "human-monitor-command"

    @property
    def arguments(self) -> Arguments:
        """The line for the human monitor."""
        return {"command-line": f"loadvm {quoted(self.name)}"}


@dataclass(frozen=True, slots=True)
class DelVm(QmpStep):
    """Delete a checkpoint from every disk that has it. HMP: delvm, which is silent about a missing one.

    Attributes:
        name: The checkpoint's name.
        disks: The disks that have it.
    """

    name: str
    disks: tuple[str, ...]
    command: ClassVar[str] = "human-monitor-command"

    @property
    def arguments(self) -> Arguments:
        """The line for the human monitor."""
        return {"command-line": f"delvm {quoted(self.name)}"}


HmpStep = SaveVm | LoadVm | DelVm


def quoted(text: str) -> str:
    r"""Spell a word for the human monitor, which knows the escapes \", \\, \n and \r inside quotes."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + "".join(escapes.get(one, one) for one in text) + '"'
