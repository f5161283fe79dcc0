"""Saves and loads the memory of a machine that has no disk to write to: it is all that a reset needs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Final, cast

from qmpsnap.errors import Unsupported
from qmpsnap.model.graph import Graph
from qmpsnap.model.names import digest, job_id, node_name
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.block import blockdev_del, open_store, open_store_to_read
from qmpsnap.plan.commands.files import create_store
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.state import cont, snapshot_load, snapshot_save, stop
from qmpsnap.plan.plan import Plan
from qmpsnap.vm import VM

_TAG: Final = "qmpsnap-ready"
# Their data is in another process, in the host's kernel, or on a device of the host; QEMU's block layer does
# not know it. A guest that has mounted a share has parts of its files in its memory.
_OUTSIDE: Final = re.compile(r"child<((?:vhost-user-(?:blk|scsi|fs)|vhost-scsi|usb-host|usb-redir)[\w-]*)>")


async def save(vm: VM, file: str) -> None:
    """Save the memory of a running guest to a new file, in which QEMU can load it again.

    Raises:
        InvalidTarget: When the file cannot be created.
        CommandFailed, JobFailed: When QEMU cannot save it; the guest goes on.
    """
    graph = await vm.graph()
    token = digest("memory", "save", file, avoid=graph.nodes)
    node = node_name(token, owned=True)
    saves = snapshot_save(job_id("save", "keep", token), _TAG, (("", node),))
    stages = (
        Stage("create the store", (create_store(file, posixpath.dirname(file)), open_store(node, file))),
        Stage("save the memory", (stop(), *done_and_dismissed(saves), cont())),
        Stage("close the store", (blockdev_del(node),)),
    )
    await vm.run(_plan("memory-save", graph, stages))


async def load(vm: VM, file: str) -> None:
    """Load the memory of a running guest from a file of `save`; the guest goes on from there.

    QEMU itself pauses the guest, and forgets what it has translated of its code.

    Raises:
        CommandFailed, JobFailed: When QEMU cannot load it.
    """
    graph = await vm.graph()
    token = digest("memory", "load", file, avoid=graph.nodes)
    node = node_name(token, owned=True)
    loads = snapshot_load(job_id("revert", "keep", token), _TAG, (("", node),), node, running=True)
    stages = (
        Stage("open the store", (open_store_to_read(node, file),)),
        Stage("load the memory", done_and_dismissed(loads)),
        Stage("close the store", (blockdev_del(node),), tidy=True),
    )
    await vm.run(_plan("memory-load", graph, stages))


async def refuse_outside(vm: VM) -> None:
    """Refuse a machine with a disk that is not QEMU's: its guest's memory would go back, and the disk not.

    Raises:
        Unsupported: The message names the device.

    QAPI: qom-list (qom.json).
    """
    for path in ("/machine/peripheral", "/machine/peripheral-anon"):
        for device in cast("list[Mapping[str, str]]", await vm.execute("qom-list", {"path": path})):
            if outside := _OUTSIDE.fullmatch(device["type"]):
                what = f"the data of {device['name']} ({outside[1]}) is not in QEMU, so it cannot be reset"
                raise Unsupported(what, feature=outside[1])


async def refuse_diskless(vm: VM, mode: str) -> None:
    """Refuse a way to reset that works by the machine's disks, where it has none to write to.

    Raises:
        Unsupported: The hint names the way that works.
    """
    if not (await vm.graph()).writable():
        raise Unsupported(
            "the machine has no disk that it can write to",
            feature=f"a reset of the mode {mode}",
            hint='its memory is all that there is to reset: reset="memory"',
        )


def _plan(op: str, graph: Graph, stages: tuple[Stage, ...]) -> Plan:
    return Plan(op=op, intent=None, disks=(), stages=stages, before=graph, after=graph)
