"""`qmpsnap job`: pause, resume, cancel, slow down or wait for one job."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import click

from qmpsnap.cli.app import Group, Verb, verb
from qmpsnap.cli.options import JOB, SPEED, dry_run, progress
from qmpsnap.cli.output import emit, json_line
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.progress import reporter
from qmpsnap.cli.runner import current_app, hooks, run, show_done, show_plan, show_steps
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import AmbiguousName, Busy, Refused
from qmpsnap.model.job import Job, parse_job_id
from qmpsnap.model.printable import printable
from qmpsnap.model.step import Step
from qmpsnap.model.units import size
from qmpsnap.plan.plan import Plan
from qmpsnap.run.outcome import Done
from qmpsnap.vm import VM

_job_id = click.argument("job_id", metavar="ID", type=JOB)
_foreign = click.option(
    "--foreign", is_flag=True, help="Allow this for another client's job. [default: refuse]"
)


@click.group("job", cls=Group, subcommand_metavar="VERB ID", options_metavar="", no_args_is_help=False)
def job() -> None:
    """Pause, resume, cancel, slow down or wait for one job.

    ID is the job's id, or the beginning of the id of only one job.
    """


def _add(function: Verb) -> Verb:
    job.add_command(function)
    return function


@_add
@verb("pause", example="qmpsnap -s /run/vm1/qmp.sock job pause qmpsnap-commit-pivot-0a1b2c3d")
@_job_id
@_foreign
@dry_run
def pause(job_id: str, *, foreign: bool) -> None:
    """Pause a job until it is resumed."""
    _send(job_id, "job-pause", lambda vm, found: vm.jobs.pause(found, foreign=foreign))


@_add
@verb("resume", example="qmpsnap -s /run/vm1/qmp.sock job resume qmpsnap-commit-pivot-0a1b2c3d")
@_job_id
@_foreign
@dry_run
def resume(job_id: str, *, foreign: bool) -> None:
    """Resume a job that was paused by a user or by an I/O error."""
    _send(job_id, "job-resume", lambda vm, found: vm.jobs.resume(found, foreign=foreign))


@_add
@verb("speed", example="qmpsnap -s /run/vm1/qmp.sock job speed qmpsnap-commit-pivot-0a1b2c3d 20M")
@_job_id
@click.argument("bytes_per_second", metavar="BYTES", type=SPEED)
@_foreign
@dry_run
def speed(job_id: str, bytes_per_second: int, *, foreign: bool) -> None:
    """Limit a job to BYTES per second (100K, 10M, 1G; 0: no limit)."""
    _send(
        job_id,
        "block-job-set-speed",
        lambda vm, found: vm.jobs.set_speed(found, bytes_per_second, foreign=foreign),
        lambda found: {"device": found, "speed": bytes_per_second},
    )


@_add
@verb("cancel", example="qmpsnap -s /run/vm1/qmp.sock job cancel qmpsnap-commit-pivot-0a1b2c3d")
@_job_id
@_foreign
@dry_run
def cancel(job_id: str, *, foreign: bool) -> None:
    """Cancel a job, and clean up after its operation.

    For another client's job, and while the job's client is still at work, only the request is sent; its end
    is not awaited.
    """
    app = current_app()
    started = time.monotonic()

    async def work(vm: VM, signals: Signals) -> Plan | tuple[Step, ...] | Done | Job:
        found = await _full_id(vm, job_id)
        if parse_job_id(found) is None:
            return await _act(vm, signals, found, lambda: vm.jobs.cancel(found, foreign=foreign))
        state = next((job for job in await vm.jobs.list() if job.id == found), None)
        try:
            plan = await vm.jobs.plan(found)
        except Busy:  # its client is still at work, and cleans up
            if state is None:
                raise
            return await _act(vm, signals, found, lambda: vm.jobs.cancel(found))
        if app.dry_run:
            undone = tuple(undo for step in reversed(plan.resumes) for undo in step.undo)
            return undone if plan.resumes else plan
        with signals.operation(plan, name=found):
            done = await vm.jobs.cancel(found)
        ended = done or state  # no result: another client cleans up after the job
        assert ended is not None  # noqa: S101 - for the type checker
        return ended

    match run(work):
        case Done() as done:
            show_done(done)
        case Plan() as plan:
            show_plan(plan)
        case tuple() as undone:
            show_steps(*((step.command, step.arguments, step.on) for step in undone))
        case another:
            _sent(another, "job-cancel", {"id": another.id}, time.monotonic() - started)


@_add
@verb(
    "wait",
    example="qmpsnap -s /run/vm1/qmp.sock job wait qmpsnap-commit-pivot-0a1b2c3d",
    short_help="Wait for a job, then finish its operation.",
)
@_job_id
@_foreign
@progress
@dry_run
@of_plan
def wait(job_id: str, *, foreign: bool) -> None:
    """Wait for a job, then finish its operation: pivot, dismissal, files.

    A job of another client, or one whose client is still at work, is only waited for. It is found by its id
    also when it has ended already.
    Stopped (Ctrl-C, SIGTERM), this cancels a job of ours, as the operation itself would have been; a second
    Ctrl-C leaves it running.
    """
    app = current_app()

    async def work(vm: VM, signals: Signals) -> Plan | Done | Job:
        found = await _full_id(vm, job_id)
        if parse_job_id(found) is None:
            if app.picture:
                raise click.UsageError(
                    "--picture shows operations of qmpsnap; another's job is only waited for"
                )
            reach = vm.jobs.get if app.dry_run else vm.jobs.wait
            return await reach(found, foreign=foreign)
        try:
            plan = await vm.jobs.plan(found)
        except Busy:  # its client is still at work, and finishes it
            if app.dry_run or app.picture:
                raise
            with signals.operation(None, name=found):
                return await vm.jobs.wait(found, hooks=hooks(signals, None))
        if app.dry_run:
            return plan
        bar = reporter(asked=app.progress, as_json=app.json) if plan.job_id else None
        with signals.operation(plan, bar, name=found):
            return await vm.run(plan, hooks(signals, bar))

    started = time.monotonic()
    match run(work):
        case Done() as done:
            show_done(done)
        case Plan() as plan:
            show_plan(plan)
        case ended if app.dry_run:
            show_steps(("await-job", {"id": ended.id, "until": "concluded"}, "wait"))
        case ended:
            _show(ended, time.monotonic() - started)


async def _full_id(vm: VM, typed: str) -> str:
    """Return the only id that begins as typed, of a job, an operation or a backup; else what was typed.

    Raises:
        AmbiguousName: When several ids begin so, and none is what was typed.
    """
    ids = {job.id for job in await vm.jobs.list()}
    if typed in ids or parse_job_id(typed) is not None:
        return typed
    with suppress(Refused):  # the jobs are known all the same
        ids |= {record.id for record in await vm.jobs.interrupted() if not record.permanent}
        ids |= {backup.id for backup in await vm.jobs.backups()}
    fitting = sorted(each for each in ids if each.startswith(typed))
    if len(fitting) > 1:
        message = f"{typed!r} is the beginning of the ids of {len(fitting)} jobs"
        raise AmbiguousName(message, candidates=fitting, hint=f"give more of it: {', '.join(fitting)}")
    return fitting[0] if fitting else typed


def _send(
    typed: str,
    command: str,
    act: Callable[[VM, str], Awaitable[object]],
    arguments: Callable[[str], dict[str, object]] = lambda found: {"id": found},
) -> None:
    """Send one command about a job, or with -n print it.

    Args:
        typed: The job's id, or its beginning.
        command: The QMP command.
        act: Sends it for the job of that id.
        arguments: Its arguments for the job of that id.
    """
    started = time.monotonic()

    async def work(vm: VM, signals: Signals) -> Job:
        found = await _full_id(vm, typed)
        return await _act(vm, signals, found, lambda: act(vm, found))

    state = run(work)
    _sent(state, command, arguments(state.id), time.monotonic() - started)


async def _act(vm: VM, signals: Signals, job_id: str, act: Callable[[], Awaitable[object]]) -> Job:
    """Do it, unless with -n; return the job as it was before."""
    foreign = bool(click.get_current_context().params["foreign"])
    state = await vm.jobs.get(job_id, foreign=foreign)
    if not current_app().dry_run:
        with signals.operation(None):
            await act()
    return state


def _sent(state: Job, command: str, arguments: dict[str, object], elapsed: float) -> None:
    """Print what was sent, or with -n what would be."""
    if current_app().dry_run:
        show_steps((command, arguments, "qmp"))
    else:
        _show(state, elapsed, arguments.get("speed"))


_STATES_AFTER = {
    "pause": "is paused",
    "resume": "is running again",
    "cancel": "is being cancelled",
    "wait": "has ended",
}


def _show(state: Job, elapsed: float, speed: object = None) -> None:
    """Print what was done to a job; that changes neither a chain nor a layer."""
    verb_name = str(click.get_current_context().info_name)
    if current_app().json:
        done = Done(op=f"job-{verb_name}", chains={}, elapsed_s=elapsed, job_id=state.id, changed=False)
        emit(json_line(**done.to_json(), job_id=state.id, job=state.to_json()))
    elif verb_name == "speed":
        limit = f"at most {size(speed)}/s" if isinstance(speed, int) and speed else "no limit"
        emit(f"{printable(state.id)}: {limit}")
    else:
        emit(f"{printable(state.id)} {_STATES_AFTER[verb_name]}")
