"""Who else writes to the images, and what QEMU may not write; what is in the way of an operation."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from qmpsnap.model.graph import Disk
from qmpsnap.model.names import stem
from qmpsnap.model.parse import FDSET, OWN_FDS
from qmpsnap.plan.diagnosis.facts import Case, Facts


def image_in_use(facts: Facts) -> Iterator[Case]:
    """An image of which another process may change the bytes."""
    if facts.status is not None and (facts.status.incoming or facts.status.migrating):
        return  # the other QEMU of the migration has the images open as well
    given = {node.file for node in facts.graph.nodes.values() if node.spelled.startswith((FDSET, *OWN_FDS))}
    for file, writer in facts.writers.items():
        if file in given:
            continue  # whoever opened it for QEMU may keep its descriptor
        loop = writer.removeprefix("the loop device ")
        remedy = ("losetup", "-d", loop) if loop != writer else ()
        if facts.off:
            yield Case(
                file,
                f"{writer} has it open for writing: the machine is not off",
                remedy,
                "" if remedy else "if a machine runs on it, look at that instead: give its monitor with -s",
            )
        else:
            yield Case(
                file,
                f"{writer} has it open for writing, too: what both write destroys the image",
                remedy,
                "" if remedy else "end that process; no command of ours may do that",
            )


def not_writable(facts: Facts) -> Iterator[Case]:
    """A lower layer that QEMU could not open for writing: a commit into it would be refused."""
    for file, reason in facts.read_only.items():
        remedy = ("chmod", "u+w", file) if reason.startswith("its mode is") else ()
        advice = "it may be meant so: do this only if you want to commit into it"
        change = "it may be meant so; to commit into it, change its owner, its mode or its mount"
        yield Case(
            file,
            f"a commit into this layer would be refused: {reason}",
            remedy,
            advice if remedy else change,
        )


def no_internal(facts: Facts) -> Iterator[Case]:
    """A writable disk that cannot hold a snapshot inside it, beside others that can."""
    disks = facts.graph.writable()
    if not any(_holds(disk) for disk in disks):
        return
    for disk in disks:
        if _holds(disk):
            continue
        file, form = disk.active.file, disk.active.inner or disk.active.format
        cause = f"it is {form}, which holds no snapshot inside: checkpoint --mode internal is refused"
        if file.startswith("/"):
            copy = posixpath.join(posixpath.dirname(file), f"{stem(file)}.copy.qcow2")
            yield Case(
                disk.name,
                cause,
                ("qmpsnap", "mirror", disk.name, copy, "--format", "qcow2", "--pivot"),
                "the other modes work as it is; once copied, start the machine from the copy",
            )
        else:
            yield Case(disk.name, cause, advice="the other modes work as it is")


def _holds(disk: Disk) -> bool:
    return disk.active.format == "qcow2" and not disk.active.inner
