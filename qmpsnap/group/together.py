"""Runs the plans of a group's machines together; after a failure it takes back what was done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import anyio

from qmpsnap.errors import Changed, Incomplete, Interrupted, LinkLost, QmpsnapError, TargetError
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.hints import command
from qmpsnap.model.step import Step
from qmpsnap.plan.intent import Checkpoint, Snapshot
from qmpsnap.plan.plan import Plan
from qmpsnap.run.log import get_logger
from qmpsnap.run.meeting import Meeting, Point, point_of
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.run.session import Event
from qmpsnap.vm import VM

_log = get_logger("qmpsnap.group")
PATIENCE = 30.0
"""Seconds that the guests of a group stand still for a machine that does not answer."""
WHY_NO_ANSWER = "see whether its process is stopped, or waits for its disks"
_TO_ANSWER = 2.0  # seconds


@dataclass(frozen=True, slots=True)
class GroupDone:
    """The result of an operation on a group.

    Attributes:
        machines: The result of each machine.
        spread_s: Seconds between the first guest's pause and the last one's, by the clocks of the QEMUs'
            hosts; None when fewer than two guests were running.
    """

    machines: Mapping[str, Done]
    spread_s: float | None = None

    def to_json(self) -> dict[str, object]:
        """Return the result in JSON's types."""
        machines = {name: done.to_json() for name, done in self.machines.items()}
        return {"machines": machines, "spread_s": self.spread_s}


class Stops:
    """Notes when each guest is paused, while the block lasts."""

    def __init__(self, machines: Mapping[str, VM]) -> None:
        self._machines = machines
        self._times: dict[str, float] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for name, vm in self._machines.items():
            self._stack.enter_context(vm.events(partial(self._note, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _note(self, name: str, event: Event) -> None:
        if event.name == "STOP":
            self._times.setdefault(name, event.timestamp)

    @property
    def spread_s(self) -> float | None:
        """Seconds between the first pause and the last; None when fewer than two guests were paused."""
        times = self._times.values()
        return max(times) - min(times) if len(times) > 1 else None


class Together:
    """A run of a group's plans.

    Args:
        machines: The machines that have a plan.
        plans: The plan of each.

    """

    def __init__(self, machines: Mapping[str, VM], plans: Mapping[str, Plan]) -> None:
        self._meeting = Meeting(machines)  # where they wait for each other
        self._machines = machines
        self._plans = plans
        self._done: dict[str, Done] = {}
        self._errors: dict[str, QmpsnapError] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}  # those that have not ended
        self._begun: set[str] = set()  # machines of which a step has begun
        self._given_up: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}  # of a step for which other guests stand still
        self._hung: set[str] = set()

    async def run(self) -> GroupDone:
        """Run the plans; see `Group.run`."""
        with Stops(self._machines) as stops:
            self._tasks = {name: asyncio.create_task(self._run_one(name)) for name in self._plans}
            outcomes = await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        if self._errors:
            await self._raise()
        return GroupDone(Frozen(self._done), stops.spread_s)

    async def _run_one(self, name: str) -> None:
        meeting, reached = self._meeting, partial(self._meeting.reach, name)

        async def before(step: Step) -> None:
            self._begun.add(name)
            self._is_done(name)
            await meeting.before(name, step)
            if point_of(step) in {Point.PAUSE, Point.MOVE} and not step.loads:  # a load may take long
                loop = asyncio.get_running_loop()
                self._timers[name] = loop.call_later(PATIENCE, self._give_up, name, step)

        def pivoted(_: object) -> None:
            self._is_done(name)
            reached()

        hooks = Hooks(cancel=meeting.off, before=before, on_pivot=pivoted)
        try:
            self._done[name] = await self._machines[name].run(self._plans[name], hooks)
        except QmpsnapError as error:
            if name not in self._begun:
                error.changed = Changed.NO
            self._errors[name] = error
        except asyncio.CancelledError:
            if name in self._given_up:
                self._errors[name] = Interrupted("stopped before anything was done")
            elif name not in self._hung:
                raise
        finally:
            self._is_done(name)
            del self._tasks[name]
            if name not in self._done:
                self.stop()
            reached()

    def _is_done(self, name: str) -> None:
        """Note that the machine has done its last step."""
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _give_up(self, name: str, step: Step) -> None:
        """Let the other guests run again: the machine has not done the step."""
        self._hung.add(name)
        self._errors[name] = TargetError(no_answer(step.command), hint=WHY_NO_ANSWER)
        _log.warning("machine.given_up", vm=self._machines[name].name, step=step.command, seconds=PATIENCE)
        self.stop()
        self._tasks[name].cancel()

    def stop(self) -> None:
        """Stop the operations that can still be stopped.

        A machine on which nothing has begun is not waited for: it may not answer.
        """
        self._meeting.call_off()
        for name in self._tasks.keys() - self._begun - self._given_up:
            self._given_up.add(name)
            self._tasks[name].cancel()

    async def _raise(self) -> None:
        """Take back what was done, if possible, and raise the error of the first machine that failed.

        Raises:
            Incomplete: When it cannot be taken back.
            QmpsnapError: The error of the first machine that failed.
        """
        name, error = next(
            ((name, error) for name, error in self._errors.items() if not isinstance(error, Interrupted)),
            next(iter(self._errors.items())),
        )
        intent = self._plans[name].intent
        if not isinstance(intent, Snapshot | Checkpoint):
            if not self._done and all(failure.changed is Changed.NO for failure in self._errors.values()):
                raise of_machine(name, error)
            raise Incomplete(
                f"{self._plans[name].op} is done on {', '.join(self._done) or 'none'}, and failed on "
                f"{', '.join(self._errors)}: {name}: {error.message}",
                done=tuple(self._done),
                remaining=tuple(f"{name}: {failure.message}" for name, failure in self._errors.items()),
                hint=error.hint or "repeat the operation",
            ) from error
        remaining, is_lost = [], False
        for machine in [name for name in self._machines if name in self._begun]:
            if machine in self._hung and not await _answers(self._machines[machine]):
                remaining.append(f"{machine}: {command('jobs')} ({self._errors[machine].message})")
                continue
            try:
                await take_back(self._machines[machine], self._plans[machine])
            except LinkLost as failure:
                is_lost = True
                remaining.append(f"{machine}: {command('jobs')} ({failure.message})")
            except QmpsnapError as failure:
                remaining.append(f"{machine}: {command('delete', intent.name)} ({failure.message})")
        if remaining:
            raise Incomplete(
                f"{name}: {error.message}; and it could not be taken back everywhere: {'; '.join(remaining)}",
                done=tuple(self._done),
                remaining=tuple(remaining),
                hint="connect again to the machines that were lost, which may have to be started again; then "
                "Group.recover() of a new group takes it back"
                if is_lost
                else "Group.recover() tries again, as soon as each machine answers",
            ) from error
        error.changed, error.left = Changed.NO, ()
        if isinstance(error, Incomplete):  # its remaining steps and its hint no longer apply
            error.done, error.remaining, error.hint = (), (), ""
        error.hint = "all machines are as before" + (f"; {error.hint}" if error.hint else "")
        raise of_machine(name, error)


def no_answer(command: str) -> str:
    """The message of an error: the machine is given up."""
    return f"QEMU did not answer {command!r} within {PATIENCE:g} s, while other guests stood still for it"


async def _answers(vm: VM) -> bool:
    """Whether QEMU answers again."""
    with anyio.move_on_after(_TO_ANSWER):
        await vm.status()
        return True
    return False


async def take_back(vm: VM, plan: Plan) -> None:
    """Take back whatever an operation on a machine has done so far.

    The overlays are merged into the layers that they cover, even if the other direction would copy less: the
    machine then writes to these layers again, as before.

    Raises:
        QmpsnapError: When that fails.
    """
    if any(record.id == plan.operation_id for record in await vm.jobs.interrupted()):
        await vm.jobs.wait(plan.operation_id)
    chains = (await vm.graph()).chains(*plan.disks)
    for disk, (overlay, below, *_) in plan.chains_after.items():
        if chains[disk][:2] == (overlay, below):
            await vm.commit(disk, top=overlay, base=below, folded="remove")
    intent = plan.intent
    assert isinstance(intent, Snapshot | Checkpoint)  # noqa: S101 - it makes a moment
    if any(moment.member == intent.member for moment in (await vm.moments()).named(intent.name)):
        await vm.delete(intent.name)


def of_machine(name: str, error: QmpsnapError) -> QmpsnapError:
    """Return the error with the machine's name before its message."""
    error.message = f"{name}: {error.message}"
    error.args = (error.message, *error.args[1:])
    return error
