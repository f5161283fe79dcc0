"""The error of a step that did not do what it should, although QEMU sent no error."""

from __future__ import annotations

from qmpsnap.errors import Changed, CommandFailed
from qmpsnap.model.step import Step


def step_failed(
    step: Step, what: str, said: str, *, changed: Changed = Changed.NO, hint: str = ""
) -> CommandFailed:
    """Return the error.

    Args:
        step: The step.
        what: What happened, for people.
        said: What QEMU says about it.
        changed: Whether anything was changed.
        hint: What to do.
    """
    text = " ".join(said.split())
    return CommandFailed(
        f"{what}: {text}",
        command=step.command,
        arguments=step.arguments,
        qmp_class="GenericError",
        desc=text,
        changed=changed,
        hint=hint,
    )
