"""Reads back the root of each device: some accept a new one without an error, but keep the old."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import CommandFailed
from qmpsnap.model.block_replies import BlockInfo
from qmpsnap.model.qapi import read

if TYPE_CHECKING:
    from qmpsnap.plan.step import Step
    from qmpsnap.run.session import Session

__all__ = ["check_roots"]


async def check_roots(session: Session, step: Step) -> None:
    """Check that every device has the root that it was given.

    Raises:
        CommandFailed: When one has another; `.desc` names it.
        Malformed: When QEMU's answer is not of the schema's shape.
        LinkLost: When the link is lost.

    QAPI: query-block (block-core.json).
    """
    devices = read(list[BlockInfo], await session.query("query-block"), "query-block")
    roots = {device.qdev: device.inserted.node_name for device in devices if device.inserted}
    for disk, node in step.arguments.items():
        qdev = step.detail[disk]
        if roots.get(qdev) != node:
            text = f"the device of {disk} did not take the node {node!r}, it reads {roots.get(qdev)!r}"
            raise CommandFailed(
                f"QEMU accepted another root for {disk}, but did not change it: {text}",
                command="qom-set",
                arguments={"path": qdev, "property": "drive", "value": node},
                qmp_class="GenericError",
                desc=text,
            )
