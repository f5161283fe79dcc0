"""The part of a VM that is QEMU's monitor itself: any command, and whether the guest runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qmpsnap.model.arguments import Text, check, refuse
from qmpsnap.model.parse_machine import parse_status
from qmpsnap.plan.vmstate.guest import refuse_cont, refuse_stop

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.machine import Status
    from qmpsnap.model.record import IntentRecord
    from qmpsnap.run.live import LiveTarget

__all__ = ["MonitorVerbs"]

_ASKS = "query-"  # how commands begin that change nothing


class MonitorVerbs:
    """The monitor of one machine; a part of VM."""

    _target: LiveTarget

    if TYPE_CHECKING:

        async def interrupted(
            self, graph: Graph | None = None, *, live: bool = False
        ) -> tuple[IntentRecord, ...]:
            """See `VM.interrupted`."""

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send any QMP command as it is; return what QEMU returns.

        It is sent at once, also while an operation is running, and nothing is checked before or after:
        of our promises only those of the link hold. What it changes nobody undoes, no record tells of it,
        and an operation whose chains it has moved ends in GraphMismatch. Cancelled before it is sent,
        nothing is sent; later its reply is awaited for at most 30 s. `query-...` commands change nothing,
        and are given up at once.

        With `human-monitor-command` the human monitor's answer is a text. Its errors are texts, too: no
        exception tells of them.

        Args:
            command: Its name, as in "block_resize".
            arguments: Its arguments; None: none.

        Raises:
            CommandFailed: When QEMU answers with an error; `changed` is NO.
            TargetError: When a `query-...` command is not answered within the session's reply limit.
            LinkLost: When the link goes before the answer.
            Malformed: When the answer is not QMP.

        QAPI: any command.
        """
        check("command", command, Text)
        _check_arguments(arguments)
        if command.startswith(_ASKS):
            return await self._target.session.query(command, arguments)
        return await self._target.session.change(command, arguments)

    async def status(self) -> Status:
        """Whether the guest runs, and how it stands, as of now.

        Raises:
            LinkLost: When the link is gone.
            TargetError: When QEMU does not answer within the session's reply limit.

        QAPI: query-status (run-state.json), query-migrate (migration.json).
        """
        session = self._target.session
        state, migration = await asyncio.gather(session.query("query-status"), session.query("query-migrate"))
        return parse_status(state, migration)

    async def cont(self, *, after_migration: bool = False) -> Status:
        """Let the guest run; return how it stands then. One that runs already runs on.

        A guest without room on its disk's file system may stand again at once (`io-error`).

        Args:
            after_migration: Whether it may run here although its state was saved or sent away. A state that
                was saved does not fit its disks any more then.

        Raises:
            Busy: When a migration is running, or an operation of ours that lets the guest run itself,
                or has left it standing: `.job_id`.
            Unsupported: When the run state is one in which a wreck would run, or none: after a load that
                failed, before VM state has come in, after a migration, before a reset that is due.
            CommandFailed: When QEMU refuses, for a file that another process has open for instance.
            LinkLost: When the link goes before the reply.

        QAPI: cont (misc.json).
        """
        await self.check_cont(after_migration=after_migration)
        await self._target.session.change("cont")
        return await self.status()

    async def stop(self) -> Status:
        """Pause the guest; return how it stands then. One that does not run stays as it is.

        Raises:
            Busy: When an operation of ours is running that would let it run on.
            CommandFailed: When QEMU refuses.
            LinkLost: When the link goes before the reply.

        QAPI: stop (misc.json).
        """
        await self.check_stop()
        await self._target.session.change("stop")
        return await self.status()

    async def check_cont(self, *, after_migration: bool = False) -> None:
        """Raise what `cont` would refuse with; nothing is sent that changes anything."""
        check("after_migration", after_migration, bool)
        status, records = await asyncio.gather(self.status(), self.interrupted(live=True))
        refuse_cont(status, records, after_migration=after_migration)

    async def check_stop(self) -> None:
        """Raise what `stop` would refuse with; nothing is sent that changes anything."""
        refuse_stop(await self.interrupted(live=True))


def _check_arguments(arguments: object) -> None:
    """Refuse what JSON, and so QMP, has no word for."""
    if not isinstance(arguments, Mapping | None):
        refuse("arguments", arguments, "give a mapping of names to values")
    for name in arguments or ():
        check("arguments", name, Text)
    try:
        json.dumps(dict(arguments or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        refuse("arguments", arguments, f"JSON cannot say that: {error}")
