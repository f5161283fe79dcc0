"""Finds out why a guest is not running, from what was read of its machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qmpsnap.errors import Refused
from qmpsnap.model.graph import Graph
from qmpsnap.model.machine import Status
from qmpsnap.model.meaning.states import RUN_STATES
from qmpsnap.model.pause import Pause
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.vmstate.guest import refuse_cont

IO_ERROR = "io-error"
_NO_SPACE = "nospace"


def pause_of(
    status: Status, records: Iterable[IntentRecord], failed: Mapping[str, str], graph: Graph | None
) -> Pause:
    """Return why a guest is not running.

    Args:
        status: Its state, which is not running.
        records: Operations on the machine that are running, or were interrupted.
        failed: The disks of which a request failed, each with its status.
        graph: The block graph, which names the disks' files; None: it was not read.
    """
    records = tuple(records)
    said = RUN_STATES.get(status.state)
    cause = said.text if said is not None else f"QEMU's run state is {status.state}."
    advice = _plain(said.advice) if said is not None else ""
    try:
        refuse_cont(status, records, after_migration=False)
    except Refused as refusal:
        held = any(record.origin is not None for record in records)
        if held or (status.migrating and status.phase != status.state):
            cause = _sentence(refusal.message)
        return Pause(status.state, cause, refusal.hint or advice)
    if status.state == IO_ERROR and failed:
        cause = _sentence("; ".join(_failure(disk, why, graph) for disk, why in failed.items()))
        remedy = "make room there" if _NO_SPACE in failed.values() else "remove the cause"
        advice = f"{remedy}; then qmpsnap cont resumes the guest, and QEMU repeats the request"
    return Pause(status.state, cause, advice, failed)


def _failure(disk: str, why: str, graph: Graph | None) -> str:
    known = graph.disks.get(disk) if graph is not None else None
    file = f" ({known.active.file})" if known is not None and known.layers else ""
    if why == _NO_SPACE:
        return f"there was no space for a write to {disk}{file}"
    return f"a read or write of {disk}{file} failed"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _plain(advice: str) -> str:
    """The advice as a hint: commands without backticks, no capital letter, and no final stop."""
    text = advice.replace("`", "")
    return f"{text[:1].lower()}{text[1:]}".removesuffix(".")
