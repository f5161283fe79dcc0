"""`qmpsnap list`: list the snapshots of the disks."""

from __future__ import annotations

import posixpath
from collections import Counter
from pathlib import Path

from qmpsnap.cli.app import verb
from qmpsnap.cli.output import Row, emit, json_line, local, relative, table, to_stderr
from qmpsnap.cli.picture import drawn, emit_picture, is_picture
from qmpsnap.cli.runner import current_app, run
from qmpsnap.cli.signals import Signals
from qmpsnap.model.hints import quoted
from qmpsnap.model.moments import Moment, Moments
from qmpsnap.model.printable import printable
from qmpsnap.model.tree import Tree, TreeLine
from qmpsnap.model.units import size
from qmpsnap.vm import VM

_HEADER = ("NAME", "KIND", "TAKEN", "OVERLAYS", "MODE", "VM STATE", "DISKS")
_RIGHT = ("OVERLAYS", "VM STATE")
_TREE = ("HOLDS", "ALLOCATED", "FILE")


@verb(
    "list",
    example="qmpsnap -s /run/vm1/qmp.sock list",
    short_help="List snapshots and checkpoints, external and internal.",
)
@drawn
def list_(form: str) -> None:
    """List the snapshots and checkpoints of the disks, the oldest first, and draw the tree of their images.

    In the tree each image is below the one by which it is backed, with the snapshots that it holds; branches
    are indented, and an empty line separates trees. `*` and the name of the disk mark the image that a guest
    writes to.

    Times are local; with --json they are UTC. OVERLAYS is the space that the overlays of a snapshot
    take on the host. VM STATE is the space of its VM state, in an image or in a separate file. MODE tells
    how an external checkpoint was taken, which decides how to revert to it.

    A picture (--format) shows the tree of images only.
    """
    picture = is_picture(current_app(), form)

    async def work(vm: VM, _: Signals) -> tuple[Moments, tuple[str, ...]]:
        return await vm.moments(), vm.warnings

    listing, warnings = run(work, looks=True)
    to_stderr(*(f"warning: {printable(warning)}" for warning in warnings))
    to_stderr(*(f"warning: not read: {printable(problem)}" for problem in listing.unreadable))
    unseen = not listing.records_seen and bool(listing.current)  # without a medium there is no file to see
    if unseen:
        to_stderr("warning: QEMU's files are not visible from here, so external snapshots are not known")
    if current_app().json:
        moments = [{**moment.to_json(), **_state_json(moment)} for moment in listing.moments]
        emit(json_line(**{**listing.to_json(), "moments": moments, "warnings": list(warnings)}))
        return
    if picture:
        emit_picture(listing.tree.picture(), form)
        return
    lines = (
        table(_HEADER, (_row(moment, listing.tree) for moment in listing.moments), right=_RIGHT, indent="")
        if listing.moments
        else []
    )
    lines += [
        f"{printable(disk)}: current snapshot {printable(name)}"
        for disk, name in listing.current.items()
        if name
    ]
    lines = lines or [f"no snapshots or checkpoints{' are known' if unseen else ''}"]
    lines += _tree(listing.tree)
    for file in listing.unneeded:
        lines += [
            f"VM state that no snapshot uses: {printable(file)}",
            f"  remove it, unless its record is elsewhere (--state-dir): rm {printable(quoted(file))}",
        ]
    emit(*lines)


def _state(moment: Moment) -> tuple[int | None, bool]:
    """Bytes of a moment's VM state, None if its file cannot be inspected; and whether the file is missing."""
    if not moment.vm_state_file:
        return moment.vm_state_size, False
    try:
        return Path(moment.vm_state_file).stat().st_size, False
    except OSError as error:
        return None, isinstance(error, FileNotFoundError)


def _row(moment: Moment, tree: Tree) -> Row:
    state_bytes, missing = _state(moment)
    cells = (
        moment.name,
        moment.kind,
        local(moment.created),
        size(moment.allocated) if moment.kind == "external" else "",
        moment.mode if moment.kind == "external" else "",
        size(state_bytes) if moment.mode else "",
        ", ".join(moment.disks),
    )
    return Row(cells, tuple(_remarks(moment, tree, state_missing=missing)))


def _remarks(moment: Moment, tree: Tree, *, state_missing: bool) -> list[str]:
    remarks = []
    if moment.vm_state_file:
        what = "VM state MISSING" if state_missing else "VM state"
        remarks.append(f"{what}: {relative(moment.vm_state_file)}")
    for part in moment.held:
        if part.invalid:
            remarks.append(f"INVALID on {part.disk}: a commit wrote into {relative(part.file)}")
        elif not part.in_chain and part.overlay:
            holder = tree.at(part.file)
            branched = holder is not None and holder.in_chain
            gone = part.overlay if branched else part.file
            remarks.append(f"no longer in the chain of {part.disk}: {relative(gone)}")
        elif not part.in_chain:
            remarks.append(f"not in the active layer of {part.disk}: {relative(part.file)}")
        remarks += (
            f"WRITTEN TO on {part.disk} at {local(layer.at)}, not by qmpsnap: {relative(layer.file)}"
            for layer in part.written
        )
    return remarks


def _state_json(moment: Moment) -> dict[str, object]:
    state_bytes, missing = _state(moment)
    return {"vm_state_bytes": state_bytes, "vm_state_missing": missing}


def _tree(tree: Tree) -> list[str]:
    """The lines of the tree; none if no image is backed by another."""
    if not any(image.backing is not None or image.missing for image in tree.images):
        return []
    places = Counter(posixpath.dirname(image.file) for image in tree.images if image.file.startswith("/"))
    place = places.most_common(1)[0][0] if places else ""
    rows: list[Row] = []
    for line in tree.drawn():
        if rows and line.image is not None and tree.at(line.image.backing or "") is None:
            rows.append(Row(("", "", "")))  # a tree of its own begins
        rows.append(_tree_row(line, place))
    lines = table(_TREE, rows, right=_TREE[1:2], indent="")
    return ["", *([f"images in {printable(place)}:"] if place else []), *lines]


def _tree_row(line: TreeLine, place: str) -> Row:
    image = line.image
    if image is None:
        return Row((line.stem, "", f"({line.hidden} more of other machines, or left)"))
    here = f"({', '.join(image.disks)})" if image.active else ""
    names = ", ".join((*image.holds, *([here] if here else [])))
    inside = place and posixpath.dirname(image.file) == place
    file = posixpath.basename(image.file) if inside else relative(image.file)
    marks = " ".join(f"({mark})" for mark in image.marks)
    return Row((f"{line.stem} {names}".rstrip(), size(image.allocated), f"{file} {marks}".rstrip()))
