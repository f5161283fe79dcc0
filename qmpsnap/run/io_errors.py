"""Asks QEMU which disks paused the guest because a request failed."""

from __future__ import annotations

from qmpsnap.model.block_replies import BlockInfo
from qmpsnap.model.disk_names import disk_names
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.qapi import read
from qmpsnap.run.target import Target

_WELL = frozenset({"", "ok"})


async def failed_disks(target: Target) -> Frozen[str, str]:
    """The disks of which a request failed and was not repeated since, each with "nospace" or "failed".

    QEMU reports this of a disk whose error policy can pause the guest. QAPI: query-block (block-core.json).

    Raises:
        Malformed: When the answer is not of the schema's shape.
    """
    command = "query-block"
    entries = read(list[BlockInfo], await target.execute(command), command)
    devices = [entry for entry in entries if entry.device or entry.qdev]
    names = disk_names(
        [(each.qdev, each.device, each.inserted.node_name if each.inserted else "") for each in devices]
    )
    paired = zip(names, devices, strict=True)
    return Frozen({name: each.io_status for name, each in paired if each.io_status not in _WELL})
