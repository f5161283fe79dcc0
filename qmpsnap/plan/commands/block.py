"""Nodes, roots and snapshots of disks. QAPI: block-core.json, transaction.json, qom.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Io, Layer
from qmpsnap.model.names import is_owned_node
from qmpsnap.model.step import AddNode, DropNode, Inside, MoveRoot, Overlay, PutOverlays, Root, Step

_PLAIN = Io()


def probe_absent(file: str, node: str) -> Step:
    """Let QEMU try to open a file that must not exist; only its error is a success. QAPI: blockdev-add.

    For machines whose files we cannot see: blockdev-snapshot-sync and drive-mirror truncate an existing file
    without notice.
    """
    arguments = Frozen({"driver": "file", "node-name": node, "filename": file, "read-only": True})
    return Step(on="qmp", command="blockdev-add", kind="probe", arguments=arguments)


def snapshot_sync(overlays: tuple[Overlay, ...]) -> Step:
    """Put every overlay on its disk, at one instant.

    One whose node is owned was opened before, by `open_overlay`: blockdev-snapshot-sync takes no secret; and
    without devices QEMU would close at once what it opens, for nobody uses it.

    QAPI: transaction, blockdev-snapshot-sync, blockdev-snapshot.

    `detail` lists, by disk, the names by which an error of QEMU's may call it.
    """
    actions = [
        {"type": "blockdev-snapshot", "data": {"node": overlay.covered, "overlay": overlay.node}}
        if is_owned_node(overlay.node)
        else {
            "type": "blockdev-snapshot-sync",
            "data": {
                "node-name": overlay.covered,
                "snapshot-node-name": overlay.node,
                "snapshot-file": overlay.file,
                "format": "qcow2",
                "mode": "absolute-paths" if overlay.made_by == "qemu" else "existing",
            },
        }
        for overlay in overlays
    ]
    names = {each.disk: (each.covered, each.node, each.file, each.backing) for each in overlays}
    return Step(
        on="qmp",
        command="transaction",
        kind="take",
        arguments=Frozen(actions=actions),
        detail=Frozen(names),
        effect=PutOverlays(overlays),
        final=True,
        writes=True,
        drains=True,
    )


def internal_snapshot(name: str, roots: tuple[tuple[str, str], ...]) -> Step:
    """Take an internal snapshot on each disk, at one instant.

    QEMU wants a root's name: given a node under a throttle it answers "Need a root block node", given the
    throttle it takes the snapshot in the image below.

    Args:
        name: The snapshot's name, on each disk.
        roots: Each disk's name and its root's node-name.

    QAPI: transaction, blockdev-snapshot-internal-sync.
    """
    actions = [
        {"type": "blockdev-snapshot-internal-sync", "data": {"device": root, "name": name}}
        for _, root in roots
    ]
    return Step(
        on="qmp",
        command="transaction",
        kind="take",
        arguments=Frozen(actions=actions),
        detail=Frozen({disk: (root,) for disk, root in roots}),
        effect=Inside(tuple(disk for disk, _ in roots), name),
        final=True,
        writes=True,
        drains=True,
    )


def internal_delete(disk: str, root: str, snapshot_id: str, name: str) -> Step:
    """Delete one internal snapshot of a disk's active layer. QAPI: blockdev-snapshot-delete-internal-sync.

    A transaction has no such action. Id and name have to agree, so that of two snapshots with one name the
    right one is deleted.
    """
    return Step(
        on="qmp",
        command="blockdev-snapshot-delete-internal-sync",
        arguments=Frozen({"device": root, "id": snapshot_id, "name": name}),
        effect=Inside((disk,), name, snapshot_id, gone=True),
        final=True,
        writes=True,
    )


def blockdev_add(
    node: str,
    file: str,
    format: str = "qcow2",  # noqa: A002 - QEMU's word
    *,
    backing: str | None = None,
    alone: bool = False,
    io: Io = _PLAIN,
    unmap: bool = False,
    restores: bool = False,
    secret: str = "",
    read_only: bool = False,
) -> Step:
    """Open an image, not yet as part of a disk. QAPI: blockdev-add.

    Args:
        node: node-name that it gets.
        file: The image's path.
        format: Its driver.
        backing: node-name of the layer that it is backed by; None: as its header says.
        alone: Whether it is opened without the backing file that its header names.
        io: How it is read and written. Its file takes that over, and layers that are opened with it.
        unmap: Whether the guest's discards free space; else QEMU ignores them.
        restores: As in Step.
        secret: Id of the secret object that opens it (qcow2 with LUKS); "": it is not encrypted.
        read_only: Whether it is opened for reading alone.
    """
    options: dict[str, Any] = {
        "driver": format,
        "node-name": node,
        "file": {"driver": "file", "filename": file},
        **_io(io, unmap=unmap),
    }
    if secret:
        options["encrypt"] = luks_options(secret)
    if backing is not None or alone:
        options["backing"] = backing
    if read_only:
        options["read-only"] = True
    return Step(
        on="qmp",
        command="blockdev-add",
        arguments=Frozen(options),
        undo=(blockdev_del(node),),
        effect=AddNode(node, format, file),
        restores=restores,
    )


def luks_options(secret: str) -> dict[str, str]:
    """The option `encrypt` of an encrypted qcow2 image, with the id of the secret object that opens it."""
    return {"format": "luks", "key-secret": secret}


def open_store(node: str, file: str) -> Step:
    """Open a store of VM state, while it is written. QAPI: blockdev-add.

    It must not stay open: QEMU would count it among the disks of an internal checkpoint.
    """
    return blockdev_add(node, file, restores=True)


def open_store_to_read(node: str, file: str) -> Step:
    """Open a store of VM state, while it is loaded. QAPI: blockdev-add.

    QEMU reads it in pieces of 32 KiB, each by another thread unless it may use io_uring. Without that it is
    opened in the usual way. It is written faster by threads.
    """
    step = blockdev_add(node, file, restores=True)
    options = {"driver": "file", "filename": file, "aio": "io_uring"}
    return replace(step, arguments=Frozen({**step.arguments, "file": options}))


def open_overlay(overlay: Overlay, io: Io) -> Step:
    """Open an overlay before it is put on its disk; to derive a key takes long. QAPI: blockdev-add.

    Args:
        overlay: The overlay.
        io: How the layer that it covers is read and written: QEMU hands on all but detect-zeroes.
    """
    return blockdev_add(
        overlay.node,
        overlay.file,
        alone=True,
        io=replace(io, detect_zeroes="off"),
        unmap=True,
        secret=overlay.secret,
    )


def open_root(root: Root, *, backing: str | None = None) -> Step:
    """Open a root's active layer, backed by that node or as its header says. QAPI: blockdev-add.

    QEMU does not tell what it does with discards. An overlay takes them, which loses nothing; an image
    without a backing file may be preallocated, and keeps its space unless it certainly did not before.
    """
    return blockdev_add(
        root.node,
        root.file,
        root.format,
        backing=backing,
        io=root.io,
        unmap=root.backing is not None,
        secret=root.secret,
    )


def put_on(opened: Step, backing: str) -> Step:
    """Give an image that no disk uses yet another backing file. QAPI: blockdev-reopen.

    Args:
        opened: The step that opened it; all of its options have to be given again.
        backing: node-name of the layer that it is backed by from then on.
    """
    options = {**opened.arguments, "backing": backing}
    return Step(on="qmp", command="blockdev-reopen", arguments=Frozen(options=[options]))


def _io(io: Io, *, unmap: bool = False) -> dict[str, Any]:
    """What differs from QEMU's defaults; it takes detect-zeroes=unmap only together with discard=unmap."""
    options: dict[str, Any] = {}
    if io.direct or io.no_flush:
        options["cache"] = {"direct": io.direct, "no-flush": io.no_flush}
    if unmap or io.detect_zeroes == "unmap":
        options["discard"] = "unmap"
    if io.detect_zeroes != "off":
        options["detect-zeroes"] = io.detect_zeroes
    return options


def blockdev_del(node: str) -> Step:
    """Free a node that we added. QAPI: blockdev-del."""
    return Step(
        on="qmp", command="blockdev-del", arguments=Frozen({"node-name": node}), effect=DropNode(node)
    )


def set_drive(root: Root, path: str, old: Root, *, closes: bool) -> Step:
    """Give a device another root; the one that it has already would abort QEMU. QAPI: qom-set.

    Args:
        root: What the disk reads from now on.
        path: QOM path of the device.
        old: What it reads until then.
        closes: Whether QEMU then closes the old root's node, which is opened again for the rollback.
    """
    back = (*((open_root(old),) if closes else ()), _set_drive(old, path))
    return replace(_set_drive(root, path, closes=closes), undo=back)


def _set_drive(root: Root, path: str, *, closes: bool = False) -> Step:
    return Step(
        on="qmp",
        command="qom-set",
        arguments=Frozen({"path": path, "property": "drive", "value": root.node}),
        effect=MoveRoot(root, alone=True, closes=closes),
        final=True,
        pauses=True,
    )


def reopen_filter(root: Root, node: str, group: str, old: Root, *, closes: bool, io: Io = _PLAIN) -> Step:
    """Put another image under a throttle. QAPI: blockdev-reopen.

    Args:
        root: What the disk reads from now on, below the filter.
        node: The throttle's node-name.
        group: Its throttle-group.
        old: What it reads until then.
        closes: As in `set_drive`.
        io: The throttle's own options, which it would lose; only `discard` it keeps by itself.
    """
    back = (*((open_root(old),) if closes else ()), _reopen_filter(old, node, group, io))
    return replace(_reopen_filter(root, node, group, io, closes=closes), undo=back)


def _reopen_filter(root: Root, node: str, group: str, io: Io, *, closes: bool = False) -> Step:
    options = {
        "driver": "throttle",
        "node-name": node,
        "throttle-group": group,
        "file": root.node,
        **_io(io),
    }
    return Step(
        on="qmp",
        command="blockdev-reopen",
        arguments=Frozen(options=[options]),
        effect=MoveRoot(root, closes=closes),
        final=True,
        pauses=True,
    )


def check_roots(roots: tuple[tuple[str, str, str], ...]) -> Step:
    """Ask which root each device has: some accept another one and keep the old. QAPI: query-block.

    Args:
        roots: Each disk's name, its qdev as query-block spells it, and the node-name of its root.
    """
    return Step(
        on="wait",
        command="check-roots",
        arguments=Frozen({disk: node for disk, _, node in roots}),
        detail=Frozen({disk: qdev for disk, qdev, _ in roots}),
    )


def check_active(disks: Sequence[Disk]) -> Step:
    """Ask which layer each disk writes to: another client may have covered it. QAPI: query-blockstats.

    Args:
        disks: The disks, as they were when the plan was made: at most one filter is above the active layer.
    """
    nodes = {disk.name: tuple(dict.fromkeys((disk.root, disk.active.node))) for disk in disks}
    return Step(
        on="wait",
        command="check-active",
        arguments=Frozen(nodes),
        detail=Frozen({disk.name: disk.qdev for disk in disks}),
    )


def flush(node: str) -> Step:
    """Put on the disk what a node has in its caches. HMP: qemu-io; QMP has no command for it.

    Only an empty answer is a success. QEMU reports a failed flush on its own standard error alone. Node names
    have no character that is special to the monitor.
    """
    line = Frozen({"command-line": f"qemu-io {node} flush"})
    return Step(
        on="qmp", command="human-monitor-command", kind="flush", arguments=line, detail=Frozen(node=node)
    )


def read_only_again(node: str) -> Step:
    """Open a layer read-only again that a stream has opened for writing. HMP: qemu-io, its `reopen`.

    QEMU 10 and 11 leave it so, and then neither open its file a second time nor flush it when it is closed.
    Unlike blockdev-reopen this takes any node, also one that QEMU has named, and keeps how it was opened.
    """
    line = Frozen({"command-line": f'qemu-io {node} "reopen -r"'})
    return Step(
        on="qmp", command="human-monitor-command", kind="flush", arguments=line, detail=Frozen(node=node)
    )


def flush_by_reopen(layer: Layer, below: Layer | None, *, read_only: bool) -> Step:
    """Put on the disk what a layer has in its caches, without a human monitor. QAPI: blockdev-reopen.

    QEMU flushes a node before it opens it anew (block.c, bdrv_reopen_prepare); it is opened as it was.

    Args:
        layer: The layer, of which the node of its file is known.
        below: The layer that it is backed by at that time, or None.
        read_only: Whether it is open read-only at that time; a job opens the layer that it fills for writing.
    """
    options = {
        "driver": layer.format,
        "node-name": layer.node,
        "read-only": read_only,
        "file": layer.file_node,
        **({"backing": below.node if below else None} if layer.format == "qcow2" else {}),
        **_io(layer.io),
    }
    arguments = Frozen(options=[options])
    return Step(
        on="qmp", command="blockdev-reopen", kind="flush", arguments=arguments, detail=Frozen(node=layer.node)
    )
