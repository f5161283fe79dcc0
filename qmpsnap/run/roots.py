"""Reads back which root each device has: some answer that they took another one, and keep the old."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from qmpsnap.errors import CommandFailed, Malformed

if TYPE_CHECKING:
    from qmpsnap.plan.root_steps import CheckRoots
    from qmpsnap.run.session import Session

__all__ = ["check_roots"]


async def check_roots(session: Session, step: CheckRoots) -> None:
    """Return when every device has the root that it was given.

    Raises:
        CommandFailed: When one has another; `.desc` names it.
        Malformed: When QEMU's answer is not of the schema's shape.
        LinkLost: When the link goes.

    QAPI: query-block (block-core.json).
    """
    answer = await session.query("query-block")
    try:
        rows = cast("list[dict[str, object]]", answer)
        found = {
            row.get("qdev"): cast("dict[str, object]", row["inserted"])["node-name"]
            for row in rows
            if row.get("inserted")
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"QEMU's answer to query-block has not the expected shape: {error!r}") from error
    for disk, qdev, node in step.roots:
        if found.get(qdev) != node:
            text = f"the device of {disk} did not take the node {node!r}, it reads {found.get(qdev)!r}"
            raise CommandFailed(
                f"QEMU accepted another root for {disk}, and did nothing: {text}",
                command="qom-set",
                arguments={"path": qdev, "property": "drive", "value": node},
                qmp_class="GenericError",
                desc=text,
            )
