"""`qmpsnap job`: pause, resume, cancel, slow down or wait for one job."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from qmpsnap.cli.app import Group, Verb, verb
from qmpsnap.cli.options import JOB, SPEED, dry_run, progress
from qmpsnap.cli.output import emit, json_line, size
from qmpsnap.cli.progress import reporter
from qmpsnap.cli.runner import current_app, hooks, run, show_done, show_plan, show_steps
from qmpsnap.model.job import parse_job_id
from qmpsnap.model.printable import printable
from qmpsnap.plan.plan import Plan
from qmpsnap.run.outcome import Done

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from qmpsnap.cli.signals import Signals
    from qmpsnap.model.job import Job
    from qmpsnap.vm import VM


_job_id = click.argument("job_id", metavar="ID", type=JOB)
_foreign = click.option(
    "--foreign", is_flag=True, help="Allow this for another client's job. [default: refuse]"
)


@click.group("job", cls=Group, subcommand_metavar="VERB ID", options_metavar="", no_args_is_help=False)
def job() -> None:
    """Pause, resume, cancel, slow down or wait for one job."""


def _add(function: Verb) -> Verb:
    job.add_command(function)
    return function


@_add
@verb("pause", example="qmpsnap -s /run/vm1/qmp.sock job pause qmpsnap-commit-pivot-0a1b2c3d")
@_job_id
@_foreign
@dry_run
def pause(job_id: str, *, foreign: bool, dry_run: bool) -> None:
    """Pause a job until it is resumed."""
    _send(
        "pause",
        job_id,
        "job-pause",
        {"id": job_id},
        lambda vm: vm.jobs.pause(job_id, foreign=foreign),
        dry_run,
    )


@_add
@verb("resume", example="qmpsnap -s /run/vm1/qmp.sock job resume qmpsnap-commit-pivot-0a1b2c3d")
@_job_id
@_foreign
@dry_run
def resume(job_id: str, *, foreign: bool, dry_run: bool) -> None:
    """Resume a job that was paused by a user or by an I/O error."""
    _send(
        "resume",
        job_id,
        "job-resume",
        {"id": job_id},
        lambda vm: vm.jobs.resume(job_id, foreign=foreign),
        dry_run,
    )


@_add
@verb("speed", example="qmpsnap -s /run/vm1/qmp.sock job speed qmpsnap-commit-pivot-0a1b2c3d 20M")
@_job_id
@click.argument("bytes_per_second", metavar="BYTES", type=SPEED)
@_foreign
@dry_run
def speed(job_id: str, bytes_per_second: int, *, foreign: bool, dry_run: bool) -> None:
    """Limit a job to BYTES per second (100K, 10M, 1G; 0: no limit)."""
    _send(
        "speed",
        job_id,
        "block-job-set-speed",
        {"device": job_id, "speed": bytes_per_second},
        lambda vm: vm.jobs.set_speed(job_id, bytes_per_second, foreign=foreign),
        dry_run,
    )


@_add
@verb("cancel", example="qmpsnap -s /run/vm1/qmp.sock job cancel qmpsnap-commit-pivot-0a1b2c3d")
@_job_id
@_foreign
@dry_run
def cancel(job_id: str, *, foreign: bool, dry_run: bool) -> None:
    """Cancel a job, and clean up after its operation.

    For another client's job only the request is sent; its end is not awaited.
    """
    ours = parse_job_id(job_id) is not None
    if not ours:
        _send(
            "cancel",
            job_id,
            "job-cancel",
            {"id": job_id},
            lambda vm: vm.jobs.cancel(job_id, foreign=foreign),
            dry_run,
        )
        return

    async def work(vm: VM, signals: Signals) -> Plan | Done | None:
        plan = await vm.jobs.plan(job_id)
        if dry_run:
            return plan
        with signals.operation(plan, name=job_id):
            return await vm.jobs.cancel(job_id)

    match run(work):
        case Done() as done:
            show_done(done)
        case Plan() as plan:
            steps = (back for step in reversed(plan.resumes) for back in step.undo)
            show_steps(*((step.command, step.arguments, step.on) for step in steps))
        case None:
            raise AssertionError("cancelling our own job returns its result")


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
def wait(job_id: str, *, foreign: bool, progress: bool, dry_run: bool) -> None:
    """Wait for a job, then finish its operation: pivot, dismissal, files.

    A job of another client is only waited for. It is found by its id also when it has ended already.
    Stopped (Ctrl-C, SIGTERM), this cancels a job of ours, as the operation itself would have been; a second
    Ctrl-C leaves it running.
    """
    app = current_app()

    async def work(vm: VM, signals: Signals) -> Plan | Done | Job:
        if parse_job_id(job_id) is None:
            return await (
                vm.jobs.get(job_id, foreign=foreign) if dry_run else vm.jobs.wait(job_id, foreign=foreign)
            )
        plan = await vm.jobs.plan(job_id)
        if dry_run:
            return plan
        bar = reporter(asked=progress, as_json=app.json) if plan.job_id else None
        with signals.operation(plan, bar, name=job_id):
            return await vm.run(plan, hooks(signals, bar))

    started = time.monotonic()
    match run(work):
        case Done() as done:
            show_done(done)
        case Plan() as plan:
            show_plan(plan)
        case _ if dry_run:
            show_steps(("await-job", {"id": job_id, "until": "concluded"}, "wait"))
        case other:
            _show("wait", other.id, time.monotonic() - started, other)


def _send(
    op: str,
    job_id: str,
    command: str,
    arguments: dict[str, object],
    act: Callable[[VM], Awaitable[object]],
    dry_run: bool,  # noqa: FBT001 - private
) -> None:
    """Send one command about a job, or with -n print it."""
    foreign = bool(click.get_current_context().params["foreign"])
    started = time.monotonic()

    async def work(vm: VM, signals: Signals) -> Job:
        job_state = await vm.jobs.get(job_id, foreign=foreign)
        if not dry_run:
            with signals.operation(None):
                await act(vm)
        return job_state

    job_state = run(work)
    if dry_run:
        show_steps((command, arguments, "qmp"))
    else:
        _show(op, job_id, time.monotonic() - started, job_state, arguments.get("speed"))


_STATES_AFTER = {
    "pause": "is paused",
    "resume": "is running again",
    "cancel": "is being cancelled",
    "wait": "has ended",
}


def _show(op: str, job_id: str, elapsed: float, found: Job, speed: object = None) -> None:
    """Print what was done to a job; that changes neither a chain nor a layer."""
    if current_app().json:
        done = Done(op=f"job-{op}", chains={}, elapsed_s=elapsed, job_id=job_id, changed=False)
        emit(json_line(**done.to_json(), job_id=job_id, job=found.to_json()))
    elif op == "speed":
        limit = f"at most {size(speed)}/s" if isinstance(speed, int) and speed else "no limit"
        emit(f"{printable(job_id)}: {limit}")
    else:
        emit(f"{printable(job_id)} {_STATES_AFTER[op]}")
