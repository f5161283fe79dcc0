"""Troubles of the guest: it cannot run on, or its file systems stand still."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.units import size
from qmpsnap.plan.diagnosis.facts import Case, Facts

LEAST_ROOM = 16 << 20
"""Free bytes below which a guest that writes is about to be paused."""

_IO_ERROR = "io-error"
_RESET_COMMAND = ("qmpsnap", "qmp", "system_reset")
_RESET: Mapping[str, str] = Frozen(
    {
        "internal-error": "QEMU met an internal error, and the guest cannot go on",
        "guest-panicked": "the guest's kernel has panicked",
    }
)


def disk_full(facts: Facts) -> Iterator[Case]:
    """A guest that QEMU paused because a disk got no space."""
    for disk, status in _failed(facts):
        if status == "nospace":
            file = facts.graph.disks[disk].active.file
            free = facts.room.get(file)
            place = posixpath.dirname(file)
            cause = f"the guest is paused: a write to {disk} found no space for {file}"
            if free is not None and free < LEAST_ROOM:
                yield Case(
                    disk,
                    f"{cause}, and {size(free)} are free there",
                    advice=f"free some space in {place}: no command does that; then qmpsnap cont",
                )
            else:
                room = f" ({size(free)} are free now)" if free is not None else ""
                yield Case(disk, f"{cause}{room}", ("qmpsnap", "cont"), "the request is repeated")


def io_error(facts: Facts) -> Iterator[Case]:
    """A guest that QEMU paused because a request to a disk failed, but not for lack of space."""
    if facts.status is None or facts.status.state != _IO_ERROR:
        return
    failed = dict(_failed(facts))
    again = "the request is repeated; if it fails again, look at the storage, and at QEMU's log"
    for disk in (disk for disk, status in failed.items() if status != "nospace"):
        layers = facts.graph.disks[disk].layers
        where = f" ({layers[0].file})" if layers else ""
        yield Case(
            disk, f"the guest is paused: a request to {disk}{where} failed", ("qmpsnap", "cont"), again
        )
    if not failed:
        yield Case("the guest", "it is paused: a request to a disk failed", ("qmpsnap", "cont"), again)


def guest_failed(facts: Facts) -> Iterator[Case]:
    """A guest that can only go on after a reset."""
    why = _RESET.get(facts.status.state) if facts.status is not None else None
    if why is not None:
        yield Case(
            "the guest",
            why,
            _RESET_COMMAND,
            "it starts anew, and what it had not written to its disks is lost; then qmpsnap cont",
        )


def load_failed(facts: Facts) -> Iterator[Case]:
    """A guest that a failed load of VM state has stopped."""
    if facts.status is None or facts.status.state != FOR_A_LOAD or facts.operations:
        return
    yield Case(
        "the guest",
        "a load of VM state has failed, and the guest's memory may belong to other contents of its disks",
        _RESET_COMMAND,
        "the guest starts anew, then: qmpsnap cont. A revert to a checkpoint instead gives it a memory "
        "that fits",
    )


def guest_frozen(facts: Facts) -> Iterator[Case]:
    """File systems that somebody froze and never thawed."""
    if facts.frozen:
        yield Case(
            "the guest",
            "its file systems are frozen: whatever writes to them waits until the agent thaws them",
            ("qmpsnap", "thaw", facts.agent),
            "unless a backup or a snapshot of another program is at work right now",
        )


def agent_silent(facts: Facts) -> Iterator[Case]:
    """A guest agent that does not answer, so that nobody can freeze the guest or thaw it."""
    if facts.agent and facts.frozen is None:
        yield Case(
            facts.agent,
            "the guest's agent does not answer",
            advice="a paused guest cannot. Else see whether the agent is running in the guest, and whether "
            "another program is connected to this socket",
        )


def device_in_way(facts: Facts) -> Iterator[Case]:
    """A device, or a mount, because of which QEMU cannot save the guest's memory."""
    for reason in facts.blocked:
        yield Case(
            "the guest",
            f"QEMU cannot save its memory: {reason.rstrip('.')}",
            advice="checkpoint, save, fork and template are refused until it is unplugged or unmounted; "
            "snapshots of the disks are possible",
        )


def space_low(facts: Facts) -> Iterator[Case]:
    """A disk that can grow, on a file system that is full."""
    if facts.status is not None and facts.status.state == _IO_ERROR:
        return  # it is said there
    for disk in facts.graph.writable():
        layer = disk.active
        free = facts.room.get(layer.file)
        grows = layer.allocated is None or layer.allocated < layer.virtual_size
        if free is not None and free < LEAST_ROOM and grows:
            yield Case(
                disk.name,
                f"{layer.file} grows, and its file system has {size(free)} left: a write may pause the guest",
                advice=f"free some space in {posixpath.dirname(layer.file)}: no command does that",
            )


def _failed(facts: Facts) -> Iterator[tuple[str, str]]:
    if facts.status is not None and facts.status.state == _IO_ERROR:
        for disk, status in facts.io_status.items():
            if disk in facts.graph.disks:
                yield disk, status
