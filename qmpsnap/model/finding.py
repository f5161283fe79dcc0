"""What `diagnose` finds: a trouble, its cause, and the command that mends it."""

from __future__ import annotations

from typing import Literal

from qmpsnap.model.frozen import JsonStruct

Severity = Literal["trouble", "limit"]
"""Whether something is wrong, or an operation that you may want is not possible as things are."""


class Finding(JsonStruct, frozen=True):
    """Something that is wrong with a machine or with its images, or that is in the way of an operation.

    Attributes:
        code: Which kind of trouble it is, such as "node-left"; docs/howto/troubles.md has a section for each.
        severity: "trouble": it should be mended. "limit": all is well, but an operation would be refused.
        subject: What it is about: a disk, a node, a job, a file, the guest, the monitor.
        cause: What is wrong and why, in one sentence.
        remedy: The command that mends it, as a list of words; () if there is no such command, and `advice`
            says why. One that begins with "qmpsnap" names no machine: it is for the machine that was looked
            at.
        advice: What has to be done or known before the command is run, or what to do instead of it; "" for
            nothing.
    """

    code: str
    severity: Severity
    subject: str
    cause: str
    remedy: tuple[str, ...] = ()
    advice: str = ""

    @property
    def is_trouble(self) -> bool:
        """Whether something is wrong, as opposed to a limit."""
        return self.severity == "trouble"
