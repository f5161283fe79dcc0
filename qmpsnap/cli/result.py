"""The text output of an operation's result."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap.cli.output import chain_lines, duration, start_lines
from qmpsnap.model.graph import draw
from qmpsnap.model.names import is_invalid_name
from qmpsnap.model.printable import printable
from qmpsnap.model.units import size
from qmpsnap.plan.plan import NOTHING_TO_DELETE, OperationEnd
from qmpsnap.run.outcome import Done

_VERBS = MappingProxyType(
    {
        "snapshot-internal": "snapshot --internal",
        "checkpoint-internal": "checkpoint --mode internal",
        "revert-prepare": "revert",
        "revert-internal": "revert",
    }
)
_ENDS: Mapping[OperationEnd, str] = MappingProxyType(
    {
        "finished": "done",
        "rolled-back": "rolled back",
        "partial": "not completed",
        "unknown": "left as it is",
        "cancelled": "stopped",
    }
)
_WHOLE_MACHINE = frozenset({"checkpoint", "revert", "save", "restore"})


def result_lines(done: Done, name: str = "") -> list[str]:
    """Lines that describe the result: first what it took, last from which files to start the machine.

    Args:
        done: The result.
        name: The snapshot to which disks were reverted, or "".
    """
    if not done.changed and done.op == "prune":
        return [f"{NOTHING_TO_DELETE}; nothing was changed", *_notes(done)]
    verb = _VERBS.get(done.op, done.op)
    text = [
        f"{verb} to {printable(name)}: {', '.join(_facts(done))}"
        if name
        else f"{verb}: {', '.join(_facts(done))}"
    ]
    text += [f"deleted: {', '.join(map(printable, done.deleted))}"] if done.deleted else []
    if not done.prepared:  # else they are unchanged, and not those to start from
        text += [line for disk, files in done.chains.items() for line in chain_lines(disk, draw(files))]
    for file in done.invalid:
        what = "you can remove it" if is_invalid_name(file) else "do not use it"
        text.append(f"invalid, no longer holds its snapshot ({what}): {printable(file)}")
    text += [
        f"unused node, not created by qmpsnap; remove it with: {printable(command)}" for command in done.left
    ]
    return [*text, *_notes(done), *start_lines(done.active)]


def _notes(done: Done) -> list[str]:
    return [f"note: {printable(note)}" for note in done.notes]


def _facts(done: Done) -> list[str]:
    took = f" in {duration(done.elapsed_s)}" if done.elapsed_s else ""  # 0: another client has finished it
    facts = [f"{_ENDS[done.ended]}{took}"]
    if done.ended == "rolled-back":
        return [*facts, *(() if done.changed else ("nothing was changed",))]
    if done.op.partition("-")[0] in _WHOLE_MACHINE:
        if done.bytes:
            facts.append(f"VM state of {size(done.bytes)}")
        if done.standstill_s:  # 0: it was paused before
            facts.append(f"the guest was paused for {duration(done.standstill_s)}")
        return facts
    if done.bytes:
        facts.append(f"{size(done.bytes)} processed")
    if done.standstill_s is not None:
        facts.append(f"the guest's I/O was paused for {duration(done.standstill_s)}")
    return facts
