"""Refuses to work on a file by a name that does not lead to it: what QEMU has open is the file.

The one place that knows what follows from `Files.open`. What would be written into a header, into a record
or into an answer is a name, and whoever starts the machine from it later would get another file.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence

from qmpsnap.errors import FileMoved, Unsupported
from qmpsnap.model.files import Files, OpenFile, is_temporary
from qmpsnap.model.graph import PATH_DRIVERS, Disk, Graph, Layer
from qmpsnap.model.hints import command
from qmpsnap.model.parse import FDSET
from qmpsnap.plan.scene import Scene


def refuse_lost(scene: Scene, disks: Iterable[Disk]) -> None:
    """Refuse a disk in snapshot mode, and one with a layer that is not the file that its name leads to.

    Each planner calls this, or its two parts, with the disks that it reads, writes or names.
    """
    for disk in disks:
        refuse_temporary(scene, disk)
        refuse_moved(scene, disk, disk.layers)


def refuse_temporary(scene: Scene, disk: Disk) -> None:
    """Refuse a disk in snapshot mode: the guest writes to a temporary file."""
    if disk.layers and temporary(disk.active, scene.files):
        raise Unsupported(
            f"{disk.name} is in snapshot mode (-snapshot, snapshot=on): the guest writes to a temporary "
            "file without a name, and QEMU would also remove a new overlay",
            feature="work on a disk in snapshot mode",
            hint=f"{command('commit', disk.name)} keeps what was written; or start QEMU without snapshot "
            "mode",
        )


def refuse_moved(scene: Scene, disk: Disk, layers: Iterable[Layer]) -> None:
    """Refuse when a layer is not the file that its name leads to; a temporary layer has no name."""
    for error in _moved(disk, layers, scene.graph, scene.files):
        raise error


def refuse_inner(disk: Disk, layers: Iterable[Layer]) -> None:
    """Refuse a layer whose node is on top of another image, which has its own format and backing file.

    An overlay's header would name that image with the format of the layer. And a stream, a commit, or a
    mirror of such a layer copies only the data allocated in that image, and loses the data of its backing
    file, without an error (docs/explanation/qemu.md).
    """
    for layer in layers:
        if layer.inner:
            several = layer.inner == layer.format
            copy = f"copy the disk to a new file: {command('mirror', disk.name, 'FILE', '--pivot')}"
            raise Unsupported(
                f"the node {layer.node!r} of {disk.name} is {layer.format} over images"
                if several
                else f"the node {layer.node!r} of {disk.name} is {layer.format} over an image of the format "
                f"{layer.inner} ({layer.file})",
                feature=f"{layer.format} over {layer.inner}",
                hint=copy if several else f"start QEMU with that image as a separate {layer.inner} node",
            )


def refuse_window(disk: Disk, layers: Sequence[Layer]) -> None:
    """Refuse a layer that a header cannot name as a backing file by its file name and format alone."""
    refuse_inner(disk, layers)
    for layer in layers:
        if layer.window:
            raise Unsupported(
                f"{disk.name} is a part of {layer.file} (driver raw with an offset or a size), which a "
                "file name cannot express",
                feature="an overlay on a part of a file",
                hint=f"copy the disk to a file of its own: {command('mirror', disk.name, 'FILE', '--pivot')}",
            )


def temporary(layer: Layer, files: Files) -> bool:
    """Whether it is the temporary layer of a disk in snapshot mode, which QEMU unlinks when it creates it."""
    fact = files.open.get(layer.file)
    return fact is not None and fact.state in {"unlinked", "unknown"} and is_temporary(layer.file)


def refuse_reopen(scene: Scene, disk: Disk, layer: Layer) -> None:
    """Refuse to write into a layer that QEMU has read-only and could not open for writing.

    It knows it by a descriptor, or by a relative name that leads nowhere by now.
    """
    if not layer.read_only:
        return
    copy = command("mirror", disk.name, "FILE", "--pivot")
    fact = scene.files.open.get(layer.file)
    spelled = _spelled(scene.graph, layer.file)
    if any(name.startswith(FDSET) for name in spelled):
        why = f"QEMU was given {layer.file} as a file descriptor"
    elif fact is not None and fact.reopens == "nothing":
        why = (
            f"QEMU calls {layer.file} {', '.join(map(repr, spelled))}, which does not exist relative to "
            "its working directory"
        )
    else:
        return
    raise Unsupported(
        f"{why}: it cannot open it again to write into it",
        feature="writing into a layer that QEMU cannot open again",
        hint=f"{command('stream', disk.name)}, or {copy}",
    )


def odd(graph: Graph, layers: Iterable[Layer]) -> bool:
    """Whether QEMU has a name for one of the files that means something else, or nothing, elsewhere."""
    return any(_spelled(graph, layer.file) for layer in layers)


def _spelled(graph: Graph, file: str) -> tuple[str, ...]:
    """QEMU's own names for a file, where they are not its path."""
    return tuple(
        node.spelled
        for node in graph.nodes.values()
        if node.file == file and node.driver in PATH_DRIVERS and node.spelled
    )


def lost_names(graph: Graph, files: Files) -> tuple[str, ...]:
    """A line for each layer whose name does not lead to the file that QEMU has open."""
    return tuple(
        f"{error.message}; {error.hint}"
        for disk in graph.disks.values()
        for error in moved_layers(disk, graph, files)
    )


def moved_layers(disk: Disk, graph: Graph, files: Files) -> tuple[FileMoved, ...]:
    """Why the names of a disk's layers must not be used, for each that does not lead to QEMU's file."""
    return tuple(_moved(disk, disk.layers, graph, files))


def _moved(disk: Disk, layers: Iterable[Layer], graph: Graph, files: Files) -> Iterator[FileMoved]:
    for layer in layers:
        if temporary(layer, files):
            continue
        for file in layer.parts:
            fact = files.open.get(file)
            if fact is not None and (error := _lost(disk, fact, graph)) is not None:
                yield error


def _lost(disk: Disk, fact: OpenFile, graph: Graph) -> FileMoved | None:
    """Why the name must not be used, and the way out; None: it leads to QEMU's file, or that is not known."""
    copy = f"copy the disk to a new file: {command('mirror', disk.name, 'FILE', '--pivot')}"
    match fact.state:
        case "unlinked":
            what = "another file has that name now" if fact.replaced else "it has no name any more"
            return FileMoved(
                f"{fact.name}, which {disk.name} has open, was removed: {what}", file=fact.name, hint=copy
            )
        case "moved":
            where = f"that file is now {fact.path}" if fact.path else "it is not known where that file is now"
            back = ""
            if fact.path and fact.replaced:
                back = f"move {fact.name} away and {fact.path} back to that name"
            elif fact.path:
                back = f"move it back: {shlex.join(('mv', '-T', fact.path, fact.name))}"
            return FileMoved(
                f"{fact.name} is not the file that {disk.name} has open: {where}"
                if fact.replaced
                else f"{fact.name}, which {disk.name} has open, was moved: {where}",
                file=fact.name,
                path=fact.path,
                hint=f"{back}, or {copy}" if back else copy,
            )
        case "same" if fact.reopens == "other":
            spelled = ", ".join(map(repr, _spelled(graph, fact.name)))
            return FileMoved(
                f"QEMU calls {fact.name} {spelled}, and would get another file if it opened that name again",
                file=fact.name,
                path=fact.path,
                hint=copy,
            )
        case _:
            return None
