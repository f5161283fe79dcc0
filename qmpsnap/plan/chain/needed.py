"""Who else stands on what a commit changes: other disks, and images of machines that are off.

Their data would change under them, and neither QEMU nor a lock of its own keeps a commit from it.
"""

from __future__ import annotations

from qmpsnap.errors import InvalidTarget, StillNeeded
from qmpsnap.model.files import NOT_ALLOWED
from qmpsnap.model.graph import Disk, Layer
from qmpsnap.model.hints import command
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.scene import Scene


def refuse_needed(
    intent: Commit, scene: Scene, disk: Disk, changed: tuple[Layer, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Refuse when anybody else stands on what changes; else what is given up, and notes."""
    files = scene.files
    by = []
    for other in scene.graph.disks.values():
        if other.name != disk.name:
            by += [f"disk {other.name}" for layer in changed if files.same(layer.file, *other.files)]
    images = dict.fromkeys(
        file
        for layer in changed
        if layer.file.startswith("/")
        for file in files.backed_by(layer.file, without=disk.files)
    )
    # QEMU reads these as raw disks: what a guest wrote to one looks like a header, and is none.
    raw = {
        files.real(layer.file)
        for other in scene.graph.disks.values()
        for layer in other.layers
        if layer.format == "raw"
    }
    standing = tuple(file for file in images if file not in raw)
    wanted = {*intent.invalidate, *(files.real(file) for file in intent.invalidate)}
    if not files.shared:
        _refuse_by([*by, *(file for file in standing if file not in wanted)])
        note = "images of other machines were not searched for: QEMU's files are not visible from here"
        if files.looked_in:
            note = (
                "images of other machines were searched for, but it is not known whether QEMU uses "
                "these files"
            )
        return tuple(file for file in standing if file in wanted), (note,)
    for where in intent.look_in:
        if not files.directories[where].exists:
            raise InvalidTarget(f"{where}, given with --look-in, is not a directory", file=where)
    for where in files.unreadable:
        if any(where.startswith(f"{directory}: ") for directory in (*files.looked_in, *files.directories)):
            raise InvalidTarget(
                f"cannot search for images backed by the chain: {where}",
                file=where,
                hint="run as a user who can read the directory",
            )
    locked = [where.partition(": ")[0] for where in files.unreadable if where.endswith(NOT_ALLOWED)]
    _refuse_by([*by, *(file for file in standing if file not in wanted)])
    _refuse_by([file for file in locked if file not in wanted], "it cannot be read, and may be backed")
    notes = [f"could not be read, may be backed by the chain: {where}" for where in files.unreadable]
    notes += [
        f"images of other machines backed by {layer.file} were not searched for"
        for layer in changed
        if not layer.file.startswith("/")
    ]
    return tuple(file for file in standing if file in wanted), tuple(notes)


def _refuse_by(by: list[str], why: str = "it is backed") -> None:
    by = list(dict.fromkeys(by))
    if by:
        raise StillNeeded(
            f"still needed by {', '.join(by)}: {why} by a layer that this commit changes",
            by=by,
            hint="; ".join(_ways(by)),
        )


def _ways(by: list[str]) -> list[str]:
    """What helps: a disk of this very machine cannot be given up."""
    disks = [one.removeprefix("disk ") for one in by if one.startswith("disk ")]
    ways = [f"stream {one} first: {command('stream', one)}" for one in disks]
    if len(disks) < len(by):
        ways.append("stream such an image first, or let it become invalid with --invalidate FILE")
        ways.append("if it is a raw disk whose guest wrote that header, move it to another directory")
    return ways
