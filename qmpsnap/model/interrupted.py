"""What an operation whose client is gone has left, and the command that ends it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal

from qmpsnap.model.frozen import JsonStruct
from qmpsnap.model.job import parse_job_id
from qmpsnap.model.keeper import Keeper, KeptFor, ending
from qmpsnap.model.record import IntentRecord

FORK: Final = "fork"

LeftKind = Literal["template", "fork"]
"""What a killed process was doing: making a template, or running a fork."""


class LeftBehind(JsonStruct, frozen=True):
    """Images beside layers that a process has left which was killed in a fork, or in making a template.

    Attributes:
        kind: "template" or "fork".
        directory: The template's directory, which is not complete; of a fork, a temporary one.
        files: The images.
        layers: Their layers, by canonical names.
    """

    kind: LeftKind
    directory: str
    files: tuple[str, ...]
    layers: tuple[str, ...]

    @property
    def remedy(self) -> tuple[str, ...]:
        """The command line that removes them, with all else that is left."""
        return ("qmpsnap", "template", "--remove", self.files[0])


def left_behind(
    keepers: Mapping[str, Keeper], operations: Iterable[IntentRecord] = ()
) -> tuple[LeftBehind, ...]:
    """Return what killed processes have left beside layers, without that of the operations.

    Args:
        keepers: The images, by canonical name.
        operations: What was interrupted: who ends a fork removes its images, too.
    """
    forked = {
        file for one in operations if is_of_fork(one.id) for files in one.chains.values() for file in files
    }
    together: dict[tuple[KeptFor, str], dict[str, str]] = {}
    for file, keeper in keepers.items():
        if keeper.state == "left" and not (keeper.owner.kind == FORK and keeper.layer in forked):
            together.setdefault((keeper.owner, ending(file)), {})[file] = keeper.layer
    return tuple(
        LeftBehind(
            "fork" if owner.kind == FORK else "template",
            owner.directory,
            tuple(images),
            tuple(layer for layer in images.values() if layer),
        )
        for (owner, _), images in together.items()
    )


def what_it_was(record: IntentRecord) -> str:
    """The operation in words, as in "commit of vda"."""
    if is_of_fork(record.id):
        return f"{FORK} {record.name!r}"
    if record.disk:
        return f"{record.op} of {record.disk}"
    return f"{record.op} {record.name!r}" if record.name else record.op


def is_of_fork(record_id: str) -> bool:
    """Whether a record is of the checkpoint that a fork has taken for itself."""
    name = parse_job_id(record_id)
    return name is not None and name.op == FORK


def needs_guest(record: IntentRecord) -> bool:
    """Whether the machine has to run before the operation can be completed or taken back."""
    return record.origin is not None


def finishing(record: IntentRecord, *, vanished: bool) -> tuple[str, ...]:
    """Return the command line that completes the operation, or takes it back.

    A commit that was stopped has written into its base. Only the same commit repairs that.

    Args:
        record: The operation.
        vanished: Whether it can no longer be completed, as `Plan.vanished` says.
    """
    if not vanished or not record.folded:
        return ("qmpsnap", "job", "wait", record.id)
    files = record.chains.get(record.disk, ())
    above, below = files.index(record.folded[0]), files.index(record.folded[-1]) + 1
    top = ("--top", record.folded[0]) if above else ()
    # A base that is no file is the deepest layer, which is the default.
    base = ("--base", files[below]) if below < len(files) else ()
    return ("qmpsnap", "commit", record.disk, *top, *base)
