"""How each step is done on a running QEMU: most are a command that is sent, some need more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from qmpsnap.errors import CommandFailed, InvalidTarget, StillNeeded, TargetExists
from qmpsnap.model.block_replies import BlockInfo, BlockStats
from qmpsnap.model.qapi import read
from qmpsnap.model.step import Step
from qmpsnap.run.hmp import load, manage, stop_for_load
from qmpsnap.run.host import Host
from qmpsnap.run.migration import Migrations
from qmpsnap.run.pausing import stop
from qmpsnap.run.session import Session


class Performer:
    """Does steps, waits for jobs excepted.

    Args:
        session: The link.
        migrations: The migrations of that QEMU.
        host: Acts on files.
    """

    def __init__(self, session: Session, migrations: Migrations, host: Host) -> None:
        self._session = session
        self._host = host
        self._ways: Mapping[str, Callable[[Step], Awaitable[None]]] = {
            "probe": self._probe,
            "blockdev-add": self._open,
            "take": self._take,
            "flush": self._flush,
            "savevm": partial(manage, session),
            "delvm": partial(manage, session),
            "loadvm": partial(load, session),
            "stop": partial(stop, session),
            "stop-for-load": partial(stop_for_load, session),
            "check-roots": partial(check_roots, session),
            "check-active": partial(check_active, session),
            "set": migrations.set,
            "migrate": migrations.begin,
            "migrate-incoming": migrations.begin,
            "migrate_cancel": migrations.cancel,
            "pass-file": migrations.pass_file,
            "release-file": migrations.release_file,
            "await-migration": migrations.wait,
            "await-closed": migrations.await_closed,
        }

    async def perform(self, step: Step) -> None:
        """Do one step.

        Raises:
            CommandFailed: When QEMU refuses it.
            MigrationFailed: When a migration failed, or did not give what was wanted.
            LinkLost: When the link goes; whether it happened is not known.
            Refused: When a file of ours cannot be made or put away.
        """
        if step.on == "host":
            await self._host.perform(step)
        elif (way := self._ways.get(step.way)) is not None:
            await way(step)
        else:
            assert step.on == "qmp", f"{step.command} is waited for, not performed"  # noqa: S101
            await self._session.change(step.command, step.arguments)

    async def _open(self, step: Step) -> None:
        """Open an image, without io_uring where QEMU was built without that or may not use it."""
        file = step.arguments.get("file")
        try:
            await self._session.change(step.command, step.arguments)
        except CommandFailed as error:
            if not isinstance(file, Mapping) or file.get("aio") != "io_uring" or "io_uring" not in error.desc:
                raise
            options = {key: value for key, value in file.items() if key != "aio"}
            await self._session.change(step.command, {**step.arguments, "file": options})

    async def _take(self, step: Step) -> None:
        """Send a transaction; of several disks QEMU's error says neither which it is, nor which action."""
        try:
            await self._session.change(step.command, step.arguments)
        except CommandFailed as error:
            disks = step.detail
            named = [disk for disk in disks if any(f"'{name}'" in error.desc for name in disks[disk])]
            if len(disks) > 1:
                which = f"disk {named[0]}" if len(named) == 1 else f"one of the disks {', '.join(disks)}"
                error.message = f"{error.message} ({which})"
                error.args = (error.message, *error.args[1:])
            raise

    async def _flush(self, step: Step) -> None:
        """Succeed when the human monitor has nothing to say; it knows no error replies."""
        said = await self._session.change(step.command, step.arguments)
        if step.command == "human-monitor-command" and said != "":
            raise CommandFailed(
                f"QEMU could not flush {step.detail['node']!r}: {said}",
                command=step.command,
                arguments=step.arguments,
                qmp_class="GenericError",
                desc=str(said).strip(),
            )

    async def _probe(self, step: Step) -> None:
        """Succeed when QEMU does not find the file; only that very error is a success."""
        file = step.arguments["filename"]
        try:
            await self._session.change(step.command, step.arguments)
        except CommandFailed as error:
            if "No such file or directory" in error.desc:
                return
            raise InvalidTarget(f"QEMU cannot look at {file}: {error.desc}", file=file) from error
        await self._session.change("blockdev-del", {"node-name": step.arguments["node-name"]})
        raise TargetExists(
            f"{file} exists already on QEMU's host, and was not touched",
            file=file,
            hint="choose another name",
        )


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


async def check_active(session: Session, step: Step) -> None:
    """Check that every disk still writes to the layer that is to be given up.

    Raises:
        StillNeeded: When another client has put an overlay on it, or moved the disk to another layer.
        Malformed: When QEMU's answer is not of the schema's shape.
        LinkLost: When the link is lost.

    QAPI: query-blockstats (block-core.json).
    """
    devices = read(list[BlockStats], await session.query("query-blockstats"), "query-blockstats")
    nodes = {device.qdev: [each.node_name for each in device.chain()] for device in devices}
    for disk, planned in step.arguments.items():
        found = nodes.get(step.detail[disk], [])
        if found[: len(planned)] != [*planned]:
            raise StillNeeded(
                f"{disk} no longer writes to the node {planned[-1]!r}: another client has changed its chain "
                "since the plan was made",
                by=[node for node in found if node not in planned][:1],
                hint="make a new plan",
            )
