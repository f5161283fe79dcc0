"""What all verbs share: connect, do the work under our signals, show the result."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, TypeVar

import click

import qmpsnap
from qmpsnap.cli.app import App
from qmpsnap.cli.logs import configure
from qmpsnap.cli.output import duration, emit, moved, shown, size, spell
from qmpsnap.cli.progress import reporter
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import Interrupted
from qmpsnap.model.graph import draw
from qmpsnap.run.outcome import Hooks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from qmpsnap.cli.progress import Bar, Lines
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan
    from qmpsnap.run.outcome import Done
    from qmpsnap.vm import VM

__all__ = ["change", "current_app", "hooks", "run", "show_done", "show_plan", "show_steps"]

_NOT_SENT = "nothing was sent (-n)"
T = TypeVar("T")
_INTERVAL = 0.5  # seconds between two looks at a job's progress


def current_app() -> App:
    """What the options before (or after) the verb say."""
    app = click.get_current_context().find_object(App)
    assert app is not None  # noqa: S101 - made with the first option
    return app


def run(work: Callable[[VM, Signals], Awaitable[T]]) -> T:
    """Connect to the machine that -s names, do the work, disconnect.

    Raises:
        Interrupted: When Ctrl-C or SIGTERM came before an operation had begun.
        QmpsnapError: Whatever the work raises.
    """
    app = current_app()
    address = app.address()
    configure(app.verbose)

    async def connected() -> T:
        with Signals(app) as signals:
            try:
                async with qmpsnap.connect(
                    address, shared_fs=app.shared_fs, state_dir=app.state_dir or None
                ) as vm:
                    return await work(vm, signals)
            except asyncio.CancelledError:
                if not signals.interrupted:
                    raise
                raise Interrupted("stopped before anything was changed") from None

    return asyncio.run(connected())


def change(intent: Intent, *, dry_run: bool, progress: bool = False) -> None:
    """Plan what was asked for; run it, or with -n print what would run."""
    app = current_app()

    async def work(vm: VM, signals: Signals) -> Plan | Done:
        plan = await vm.plan(intent)
        if dry_run:
            return plan
        bar = reporter(asked=progress, as_json=app.json) if plan.job_id or plan.moves_memory else None
        with signals.operation(plan.job_id, bar):
            return await vm.run(plan, hooks(signals, bar))

    result = run(work)
    if isinstance(result, qmpsnap.Done):
        show_done(result)
    else:
        show_plan(result)


def hooks(signals: Signals, bar: Bar | Lines | None) -> Hooks:
    """What an operation tells us, and how our signals reach it."""
    app = current_app()

    def pivoted(active: Mapping[str, str]) -> None:
        app.moved = dict(active)

    return Hooks(
        progress=bar.tell if bar is not None else None,
        interval=_INTERVAL,
        on_pivot=pivoted,
        detach=signals.detach,
        cancel=signals.cancel,
    )


def show_plan(plan: Plan) -> None:
    """Print a plan that was not run."""
    if current_app().json:
        emit(spell(plan=plan.to_json(), changed=False))
    else:
        emit(*map(shown, str(plan).splitlines()), _NOT_SENT)


def show_steps(*steps: tuple[str, Mapping[str, object], str]) -> None:
    """Print commands that were not sent and that change no chain.

    Args:
        steps: Of each its command, its arguments, and "qmp", "host" or "wait".
    """
    if current_app().json:
        listed = [
            {"command": command, "arguments": dict(arguments), "on": kind}
            for command, arguments, kind in steps
        ]
        emit(spell(plan={"steps": listed, "before": {}, "after": {}}, changed=False))
        return
    lines = []
    for number, (command, arguments, kind) in enumerate(steps, 1):
        if kind == "qmp":
            text = json.dumps({"execute": command, "arguments": dict(arguments)}, ensure_ascii=False)
            lines.append(f"  {number}. -> {shown(text)}")
        else:
            text = json.dumps(dict(arguments), ensure_ascii=False, default=str)
            lines.append(f"  {number}. {'..' if kind == 'wait' else '**'} {command} {shown(text)}")
    emit(*lines, _NOT_SENT)


def show_done(done: Done) -> None:
    """Print the result of an operation."""
    if current_app().json:
        emit(spell(**done.to_json(), job_id=done.job_id))
        return
    # One that was stopped took no time of its own; its notes say what became of it.
    facts = [f"done in {duration(done.elapsed_s)}" if done.elapsed_s else "stopped"]
    if done.bytes:
        facts.append(f"{size(done.bytes)} copied")
    if done.standstill_s is not None:
        facts.append(f"the guest's I/O stood still for {duration(done.standstill_s)}")
    lines = [f"{done.op}: {', '.join(facts)}"]
    lines += [f"{shown(disk)}: {shown(draw(files))}" for disk, files in done.chains.items()]
    lines += [f"invalid, it holds no moment any more: {shown(file)}" for file in done.invalid]
    lines += [f"of no use any more, and not ours: {shown(command)} frees it" for command in done.left]
    lines += [f"note: {shown(note)}" for note in done.notes]
    emit(*lines, *moved(done.active))
