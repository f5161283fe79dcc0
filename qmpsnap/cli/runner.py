"""What all verbs share: connect, do the work with our signal handlers, show the result."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import click

import qmpsnap
from qmpsnap.cli.app import App
from qmpsnap.cli.logs import configure
from qmpsnap.cli.machine import opened, words
from qmpsnap.cli.output import emit, json_line
from qmpsnap.cli.picture import check_picture, emit_picture
from qmpsnap.cli.progress import Bar, Lines, reporter
from qmpsnap.cli.result import result_lines
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import Interrupted
from qmpsnap.model.printable import printable
from qmpsnap.plan.intent import Intent, Revert
from qmpsnap.plan.plan import Plan
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.vm import VM

_NOT_SENT = "nothing was sent (-n)"
T = TypeVar("T")
_ANYWHERE: Mapping[str, str] = MappingProxyType({})
_INTERVAL = 0.5  # seconds between two queries of a job's progress


def current_app() -> App:
    """The options of the running command that say how it runs."""
    app = click.get_current_context().find_object(App)
    assert app is not None  # noqa: S101 - made with the first option
    return app


def run(
    work: Callable[[VM, Signals], Awaitable[T]], *, looks: bool = False, greeting_limit: float = 5.0
) -> T:
    """Connect to the machine that -s names, or open the images of -i, do the work, disconnect.

    Args:
        work: The work to do with the machine.
        looks: Whether the work changes nothing: then only the headers of images are read.
        greeting_limit: Seconds that a running QEMU may take to greet.

    Raises:
        Interrupted: When Ctrl-C or SIGTERM came before an operation had begun.
        QmpsnapError: Whatever the work raises.
    """
    app = current_app()
    app.connects = True
    check_picture(app)
    machine = opened(app, looks=looks, greeting_limit=greeting_limit)

    async def connected(signals: Signals) -> T:
        async with machine as vm:
            return await work(vm, signals)

    return run_alone(connected)


def run_alone(work: Callable[[Signals], Awaitable[T]]) -> T:
    """Do work that needs no machine, with our signal handlers.

    Raises:
        click.UsageError: When a record of a session was asked for that there is not.
        Interrupted: When Ctrl-C or SIGTERM came before an operation had begun.
        QmpsnapError: Whatever the work raises.
    """
    app = current_app()
    if app.record is not None and not app.connects:
        raise click.UsageError("there is nothing to record: this command speaks to no machine of -s or -i")
    configure(app.verbose)

    async def interruptible() -> T:
        with Signals(app) as signals:
            try:
                return await work(signals)
            except asyncio.CancelledError:
                if not signals.interrupted:
                    raise
                raise Interrupted("stopped before anything was changed") from None

    return asyncio.run(interruptible())


async def _run(vm: VM, plan: Plan, given: Hooks) -> Done:
    return await vm.run(plan, given)


def change(
    intent: Intent,
    then: Callable[[Done], Iterable[str]] = lambda _: (),
    *,
    do: Callable[[VM, Plan, Hooks], Awaitable[Done]] = _run,
    follows: Callable[[Plan], Iterable[NextStep]] = lambda _: (),
) -> None:
    """Plan the intent and run it, or with -n print the plan.

    Args:
        intent: The intent.
        then: Gives more lines for the end of the text: what to do next.
        do: How it is run.
        follows: Gives the steps that `do` takes after those of the plan, for -n.
    """
    app = current_app()

    async def work(vm: VM, signals: Signals) -> Plan | Done:
        plan = await (vm.when_idle(intent) if app.wait else vm.plan(intent))
        if app.dry_run:
            return plan
        bar = reporter(asked=app.progress, as_json=app.json) if plan.job_id or plan.moves_memory else None
        with signals.operation(plan, bar):
            return await do(vm, plan, hooks(signals, bar))

    result = run(work)
    if isinstance(result, qmpsnap.Done):
        show_done(result, then, intent.name if isinstance(intent, Revert) else "")
    else:
        show_plan(result, *follows(result))


def command(*verb: str, to_new: bool = False) -> str:
    """A command line that can be typed, with the shared options of this one.

    Args:
        verb: The verb and what follows it.
        to_new: Whether it is for a new QEMU, whose monitor is not known yet: NEW is its placeholder.
    """
    return printable(shlex.join(["qmpsnap", *words_of(current_app(), to_new=to_new), *verb]))


def words_of(app: App, *, to_new: bool = False) -> list[str]:
    """The shared options that a further command for this machine needs; `to_new` as for `command`."""
    options = ["-s", "NEW"] if to_new else words(app)
    if app.state_dir:
        options += ["--state-dir", app.state_dir]
    if app.shared_fs is not None:
        options += ["--shared-fs", "yes" if app.shared_fs else "no"]
    return options


def hooks(signals: Signals, bar: Bar | Lines | None, began: Mapping[str, str] = _ANYWHERE) -> Hooks:
    """The hooks through which an operation reports its progress, and our signals reach it.

    Args:
        signals: Ctrl-C and SIGTERM.
        bar: Shows the progress.
        began: Active file of each disk before the operation, of one that may lead back to it.
    """
    app = current_app()

    def pivoted(active: Mapping[str, str]) -> None:
        moved = {**app.moved, **active}
        app.moved = {disk: file for disk, file in moved.items() if began.get(disk) != file}

    return Hooks(
        progress=bar.update if bar is not None else None,
        interval=_INTERVAL,
        on_pivot=pivoted,
        detach=signals.detach,
        cancel=signals.cancel,
    )


NextStep = tuple[str, Mapping[str, object], str]
"""A command that a plan does not have: its name, its arguments, and "qmp", "host" or "wait"."""


def show_plan(plan: Plan, *then: NextStep) -> None:
    """Print a plan that was not run, and the steps that would follow it; or a picture of its chains."""
    app = current_app()
    if app.picture:
        emit_picture(plan.picture(), app.picture)
        return
    if app.json:
        printed = plan.to_json()
        if then:
            printed["then"] = _steps_json(then)
        emit(json_line(plan=printed, changed=False))
        return
    steps = sum(len(part.steps) for part in plan.parts)
    following = ["then:", *_step_lines(then, first=steps + 1)] if then else []
    emit(*str(plan).split("\n"), *following, _NOT_SENT)


def show_steps(*steps: NextStep) -> None:
    """Print commands that were not sent and that change no chain."""
    if current_app().json:
        emit(json_line(plan={"steps": _steps_json(steps), "before": {}, "after": {}}, changed=False))
    else:
        emit(*_step_lines(steps), _NOT_SENT)


def _steps_json(steps: Iterable[NextStep]) -> list[dict[str, object]]:
    return [{"command": name, "arguments": dict(arguments), "on": kind} for name, arguments, kind in steps]


def _step_lines(steps: Iterable[NextStep], *, first: int = 1) -> list[str]:
    text = []
    for number, (name, arguments, kind) in enumerate(steps, first):
        if kind == "qmp":
            sent = json.dumps({"execute": name, "arguments": dict(arguments)}, ensure_ascii=False)
            text.append(f"  {number}. -> {printable(sent)}")
        else:
            details = json.dumps(dict(arguments), ensure_ascii=False, default=str)
            text.append(f"  {number}. {'..' if kind == 'wait' else '**'} {name} {printable(details)}")
    return text


def show_done(done: Done, then: Callable[[Done], Iterable[str]] = lambda _: (), name: str = "") -> None:
    """Print the result of an operation, of a revert to `name`; `then` gives more lines of the text."""
    if current_app().json:
        emit(json_line(**done.to_json(), job_id=done.job_id))
    else:
        emit(*result_lines(done, name), *then(done))
