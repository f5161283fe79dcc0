"""Which steps roll an operation back, and in what order: read from its steps alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qmpsnap.model.step import AddNode, DropNode, Step
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.effect import overlays

# What steps free: files, and nodes.
_FREES = {"remove-file": "file", "blockdev-del": "node-name"}


def taking_back(done: Sequence[Step], *, loaded: bool) -> Iterator[Step]:
    """The steps that roll an operation back, as far as that is possible, in order.

    An overlay that was put on a disk stays, because the guest may have written to it; so does the record of a
    snapshot without VM state, for whoever finishes it. A node that was freed already is not freed twice. A
    guest that was resumed already is left alone: if it is paused once more, somebody else wanted that.

    Memory that was loaded, even in part, and that of a guest which was reset, belongs to the disks as they
    are then, if to any: these stay, and the guest stays paused.

    Args:
        done: What was done, in order.
        loaded: Whether the guest's memory is another one by now, or cannot be trusted.
    """
    put_on = {name for overlay in overlays(done) for name in (overlay.file, overlay.node)}
    freed = {step.effect.node for step in done if isinstance(step.effect, DropNode)}
    stays_paused = loaded or any(step.command == "cont" for step in done)
    for step in reversed(done):
        if loaded and not step.restores:
            continue
        if isinstance(step.effect, AddNode) and step.effect.node in freed:
            continue
        if put_on and (record := record_of(step)) is not None and record.state is None:
            continue
        for back in step.undo:
            stays = back.command in _FREES and back.arguments[_FREES[back.command]] in put_on
            if not stays and not (stays_paused and back.command == "cont"):
                yield back
