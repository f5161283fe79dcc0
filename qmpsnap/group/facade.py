"""The interface of a group: a method for each operation, as `VM` has for one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from secrets import token_hex
from typing import TypeVar

from qmpsnap.errors import Busy, Changed, CommandFailed, NotFound, QmpsnapError, TargetError
from qmpsnap.group.moments import GroupMoment, join
from qmpsnap.group.together import PATIENCE, WHY_NO_ANSWER, GroupDone, Stops, Together, no_answer, of_machine
from qmpsnap.model.arguments import Text, check, refuse
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.machine import Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.names import is_name
from qmpsnap.model.record import IntentRecord, Member
from qmpsnap.plan.intent import Checkpoint, Delete, FileMode, Revert, Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.run.session.change import settled
from qmpsnap.vm import VM

T = TypeVar("T")
GroupIntent = Snapshot | Checkpoint | Revert | Delete
"""What can be planned for a group."""

_AFTER_CANCEL = 30.0  # seconds
_TO_RESUME = 5.0  # seconds until the others are taken to have answered `cont`


class Group:
    """Several machines, of which snapshots and checkpoints are taken at one instant.

    A paused guest takes part, and stays paused. An operation is planned for all machines first: if it is
    refused for one, nothing is changed on any. The errors are those of `VM`; the message begins with the
    machine's name.

    Args:
        machines: The machines by their names; give each machine the same name every time.

    Raises:
        BadArgument: When there is no machine, one is given twice, or a name is outside the grammar.
    """

    def __init__(self, machines: Mapping[str, VM]) -> None:
        if not isinstance(machines, Mapping) or not machines:
            refuse("machines", machines, "give a mapping of names to machines")
        for name, vm in machines.items():
            check("machines", name, Text)
            if not is_name(name):
                refuse("machines", name, "use letters, digits, '_', '.' and '-', at most 64")
            if not isinstance(vm, VM):
                refuse("machines", vm, "give what connect() or launch() returned")
        for (name, vm), (other_name, other) in combinations(machines.items(), 2):
            if other is vm or (vm.pid is not None and other.pid == vm.pid):
                process = f", process {vm.pid}" if vm.pid is not None else ""
                refuse("machines", other_name, f"it is the same machine as {name!r}{process}: give it once")
        self.machines: Mapping[str, VM] = Frozen(machines)

    # -- see ---------------------------------------------------------------------------------------

    async def moments(self) -> tuple[GroupMoment, ...]:
        """List the moments of groups that these machines have, the oldest first.

        A moment is a snapshot or checkpoint of the group. It is not `complete` if it was taken of other
        machines, too, if its operation was interrupted, or if it was deleted on some of them.
        """
        return join(await self._each(_moments))

    # -- plan and run ------------------------------------------------------------------------------

    async def plan(self, intent: GroupIntent) -> Mapping[str, Plan]:
        """Plan an operation for each machine; nothing is changed.

        Args:
            intent: A snapshot or checkpoint, of which each machine becomes a member; a revert to a
                moment of this group, or the deletion of such a moment.

        Raises:
            NotFound: When no such moment was taken of this group, or it is incomplete (a revert).
            Busy: When an earlier operation of the group was interrupted; `recover` finishes it.
            Refused: As `VM.plan`.
        """
        if not isinstance(intent, GroupIntent):
            refuse("intent", intent, "give a Snapshot, Checkpoint, Revert or Delete")
        await self._refuse_interrupted()
        match intent:
            case Revert():
                await self._find(intent.name)
                intents: Mapping[str, GroupIntent] = dict.fromkeys(self.machines, intent)
            case Delete():
                holders = await self._holders(intent.name)
                intents = dict.fromkeys(holders, intent)
            case _:
                group, of = token_hex(8), tuple(self.machines)
                intents = {name: replace(intent, member=Member(group, name, of)) for name in of}
        plans = await self._each(lambda vm, name: vm.plan(intents[name]), intents)
        return Frozen(plans)

    async def run(self, plans: Mapping[str, Plan]) -> GroupDone:
        """Run the plans that `plan` made, together.

        Snapshots and checkpoints are taken of all machines or of none. After a failure or a cancellation the
        machines that have completed theirs delete it again, while their guests run. A revert is rolled back
        if no disk has moved yet. Later, each machine is reverted, or in the state that its error describes. A
        deletion that failed can be repeated.

        Raises:
            BadArgument: When the plans are not those of this group.
            Incomplete: When some machines were changed and others were not, and the change could not be taken
                back; `.done` and `.remaining` name them.
            QmpsnapError: The error of the first machine that failed; the others are as before.
        """
        if not plans or not set(plans) <= set(self.machines):
            refuse("plans", tuple(plans), "give what plan() of this group returned")
        together = Together({name: self.machines[name] for name in plans}, plans)
        task = asyncio.create_task(together.run(), name="qmpsnap: group")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            together.stop()
            await settled(task, limit=_AFTER_CANCEL)
            if not task.done():
                task.cancel()
                await settled(task, limit=_AFTER_CANCEL)
            if task.done() and not task.cancelled():
                task.exception()
            raise

    async def snapshot(self, name: str) -> GroupDone:
        """Put overlays on every writable disk of each machine, while all guests are paused.

        Args:
            name: The name of the moment, on each machine.

        Raises:
            QmpsnapError: As `VM.snapshot`, `plan` and `run`.

        QAPI: stop, transaction, cont.
        """
        return await self.run(await self.plan(Snapshot(name)))

    async def checkpoint(self, name: str, *, mode: FileMode = "in-place") -> GroupDone:
        """Take a checkpoint of each machine, all at one instant.

        Args:
            name: The name of the moment, on each machine.
            mode: As in `VM.checkpoint`; `revert` can return to a checkpoint of the default mode.

        Raises:
            QmpsnapError: As `VM.checkpoint`, `plan` and `run`.

        QAPI: stop, snapshot-save, migrate, transaction, cont.
        """
        return await self.run(await self.plan(Checkpoint(name, mode)))

    async def revert(self, name: str, *, discard: bool = False) -> GroupDone:
        """Revert each machine in place; no guest runs again before all are reverted.

        Args:
            name: A moment of this group, which is complete.
            discard: Whether the layers that the guests have written to until now are removed.

        Raises:
            QmpsnapError: As `VM.revert`, `plan` and `run`.
        """
        return await self.run(await self.plan(Revert(name, discard=discard)))

    async def delete(self, name: str) -> GroupDone:
        """Delete a moment of the group from each machine that has it; the moment may be incomplete.

        Args:
            name: Its name.

        Raises:
            QmpsnapError: As `VM.delete`, `plan` and `run`.
        """
        return await self.run(await self.plan(Delete(name)))

    async def recover(self) -> tuple[str, ...]:
        """Finish an interrupted operation of the group, and delete incomplete moments.

        On each machine the operation is completed or rolled back, and a guest that it has paused runs again.
        A moment that was taken of other machines, too, stays. An interrupted revert is completed only on the
        machines on which it had begun, one after the other: revert again after it.

        Returns:
            Names of the moments that were deleted because some machines do not have them.

        Raises:
            Busy: When the operation's client is still at work.
            QmpsnapError: The error of the first machine that failed.
        """
        await self._each(_finish)
        names = set(self.machines)
        broken = [
            moment for moment in await self.moments() if not moment.complete and names >= set(moment.of)
        ]
        for moment in broken:
            for machine in moment.held:
                await self.machines[machine].delete(moment.name)
        return tuple(moment.name for moment in broken)

    # -- the guests --------------------------------------------------------------------------------

    async def stop(self) -> GroupDone:
        """Pause all guests at once; after a failure those that were running run again.

        If a machine does not answer, the others run again after 30 s; its own guest does once it answers,
        unless the link is closed by then.

        Raises:
            TargetError: When a machine does not answer within 30 s.
            QmpsnapError: As `VM.stop`; `.left` names each guest that QEMU has not resumed.
        """
        await self._each(lambda vm, _: vm.check_stop())
        before = await self._each(lambda vm, _: vm.status())
        running = [name for name in self.machines if before[name].running]
        with Stops(self.machines) as stops:
            sent = {name: asyncio.create_task(self.machines[name].execute("stop")) for name in running}
            try:
                await asyncio.wait([asyncio.gather(*sent.values(), return_exceptions=True)], timeout=PATIENCE)
                _check_stopped(sent)
            except BaseException as error:
                again = {name: asyncio.create_task(self.machines[name].execute("cont")) for name in running}
                tasks = asyncio.gather(*sent.values(), *again.values(), return_exceptions=True)
                await settled(tasks, limit=_TO_RESUME)
                tasks.cancel()  # one that hangs: its answers are awaited for a limited time
                await settled(tasks, limit=2 * _AFTER_CANCEL)
                if isinstance(error, QmpsnapError) and (paused := _not_resumed(again)):
                    error.changed, error.left = Changed.YES, (*error.left, *paused)
                raise
        return GroupDone(Frozen(), stops.spread_s)

    async def cont(self) -> Mapping[str, Status]:
        """Resume all guests at once; return their run states after that.

        Raises:
            QmpsnapError: As `VM.cont`; nothing is sent when one may not be resumed.
        """
        await self._each(lambda vm, _: vm.check_cont())
        await self._each(lambda vm, _: vm.execute("cont"))
        return Frozen(await self._each(lambda vm, _: vm.status()))

    # -- inside ------------------------------------------------------------------------------------

    async def _each(
        self, work: Callable[[VM, str], Awaitable[T]], names: Iterable[str] | None = None
    ) -> dict[str, T]:
        """Do work on all machines concurrently; when all have ended, raise the first error, if any."""
        chosen = tuple(self.machines if names is None else names)
        calls = (work(self.machines[name], name) for name in chosen)
        results = await asyncio.gather(*calls, return_exceptions=True)
        for name, result in zip(chosen, results, strict=True):
            if isinstance(result, QmpsnapError):
                raise of_machine(name, result)
            if isinstance(result, BaseException):
                raise result
        return dict(zip(chosen, results, strict=True))  # type: ignore[arg-type]  # no exception is left

    async def _holders(self, name: str) -> tuple[str, ...]:
        """Return the machines that have a moment of that name of the group."""
        moments = [moment for moment in await self.moments() if moment.name == name]
        if not moments:
            raise NotFound(f"this group has no moment {name!r}", hint="Group.moments() lists them")
        return tuple(
            machine for machine in self.machines if any(machine in moment.held for moment in moments)
        )

    async def _find(self, name: str) -> None:
        """Check that the group has a complete moment of that name."""
        moments = [moment for moment in await self.moments() if moment.name == name]
        complete = [moment for moment in moments if moment.complete and set(moment.of) == set(self.machines)]
        if complete:
            return
        for moment in moments:
            missing = [other for other in moment.of if other not in moment.held]
            other_group = f"it was taken of {', '.join(moment.of)}, and not of this group"
            why = f"it is missing on {', '.join(missing)}" if missing else other_group
            raise NotFound(
                f"the moment {name!r} of the group is incomplete: {why}",
                hint="Group.recover() or Group.delete() deletes its remaining parts",
            )
        await self._holders(name)

    async def _refuse_interrupted(self) -> None:
        interrupted = await self._each(lambda vm, _: _interrupted(vm, live=True))
        for name, records in interrupted.items():
            for record in records:
                state = "is running" if record.live else "was interrupted"
                raise Busy(
                    f"{name}: {record.op} {record.name!r} of the group {state}",
                    node="",
                    job_id=record.id,
                    hint="wait until its client ends" if record.live else "Group.recover() finishes it",
                )


def _check_stopped(sent: Mapping[str, asyncio.Task[object]]) -> None:
    """Raise the first error of these commands; one that is not answered is one."""
    for name, task in sent.items():
        if not task.done():
            raise TargetError(
                f"{name}: {no_answer('stop')}",
                hint="all others run again, and its own guest does, too, if it answers before the link is "
                f"closed; {WHY_NO_ANSWER}",
            )
        if isinstance(error := task.exception(), QmpsnapError):
            raise of_machine(name, error)
        if error is not None:
            raise error


def _not_resumed(resuming: Mapping[str, asyncio.Task[object]]) -> tuple[str, ...]:
    """The guests that QEMU has refused to resume."""
    errors = {
        name: task.exception() for name, task in resuming.items() if task.done() and not task.cancelled()
    }
    return tuple(
        f"the guest of {name} is paused: {command('cont')} ({error.message})"
        for name, error in errors.items()
        if isinstance(error, CommandFailed)
    )


async def _moments(vm: VM, _name: str) -> Moments:
    return await vm.moments()


async def _interrupted(vm: VM, *, live: bool = False) -> tuple[IntentRecord, ...]:
    """Interrupted operations of groups: those that take a moment, and reverts to one.

    The record of a deletion does not name its moment. A plan is refused as long as its jobs are there.
    """
    records = await vm.jobs.interrupted(live=live)
    if all(record.member is not None for record in records):
        return records
    names = {moment.name for moment in (await vm.moments()).moments if moment.member is not None}
    return tuple(record for record in records if record.member is not None or record.name in names)


async def _finish(vm: VM, _name: str) -> None:
    for record in await _interrupted(vm):
        await vm.jobs.wait(record.id)
