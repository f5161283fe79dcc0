"""`qmpsnap status`, `cont` and `stop`: show, resume or pause the guest."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import dry_run
from qmpsnap.cli.output import emit, json_line, wrap
from qmpsnap.cli.runner import current_app, run, show_steps
from qmpsnap.cli.signals import Signals
from qmpsnap.model.machine import Status
from qmpsnap.model.pause import Pause
from qmpsnap.model.printable import printable
from qmpsnap.run.outcome import Done
from qmpsnap.vm import VM


@verb(
    "status", example="qmpsnap -s /run/vm1/qmp.sock status", short_help="Show whether the guest is running."
)
def status() -> None:
    """Show whether the guest is running; if it is not, why, and what resumes it.

    The first word is QEMU's run state: running, paused, io-error, postmigrate and so on.
    """

    async def work(vm: VM, _: Signals) -> tuple[Status, Pause | None]:
        return await vm.status(), await vm.why_paused()

    machine_status, pause = run(work)
    if current_app().json:
        pause_json = pause.to_json() if pause is not None else None
        emit(json_line(**machine_status.to_json(), pause=pause_json))
        return
    lines = [machine_status.state]
    if machine_status.migration != "none":
        lines.append(f"migration: {printable(machine_status.migration)}")
    if pause is not None:
        lines += wrap(pause.cause, more="")
        lines += wrap(f"next: {pause.advice}", indent="  ", more="  ") if pause.advice else []
    emit(*lines)


@verb("cont", example="qmpsnap -s /run/vm1/qmp.sock cont", short_help="Start or resume the guest.")
@click.option(
    "--after-migration",
    is_flag=True,
    help="Also after the guest's state was saved, which makes the saved file useless, or migrated away. "
    "[default: refuse]",
)
@dry_run
def cont(*, after_migration: bool) -> None:
    """Start or resume the guest.

    Refused when the guest could not run or would be corrupt: after a failed load of VM state, before incoming
    VM state has arrived, when a reset is needed first, and while an operation of qmpsnap keeps the guest
    paused.
    """
    _send(
        "cont",
        lambda vm: vm.check_cont(after_migration=after_migration),
        lambda vm: vm.cont(after_migration=after_migration),
    )


@verb("stop", example="qmpsnap -s /run/vm1/qmp.sock stop", short_help="Pause the guest.")
@dry_run
def stop() -> None:
    """Pause the guest, until `qmpsnap cont`.

    Refused while an operation of qmpsnap is running that would resume the guest.
    """
    _send("stop", lambda vm: vm.check_stop(), lambda vm: vm.stop())


def _send(
    command: str, check: Callable[[VM], Awaitable[None]], act: Callable[[VM], Awaitable[Status]]
) -> None:
    app = current_app()
    started = time.monotonic()

    async def work(vm: VM, signals: Signals) -> Status | None:
        if app.dry_run:
            await check(vm)
            return None
        with signals.operation(None):
            return await act(vm)

    machine_status = run(work)
    if machine_status is None:
        show_steps((command, {}, "qmp"))
    elif app.json:
        done = Done(op=command, chains={}, elapsed_s=time.monotonic() - started, changed=False)
        emit(json_line(**done.to_json(), **machine_status.to_json()))
    else:
        state = machine_status.state
        emit(f"the guest is {state if state in {'running', 'paused'} else f'not running ({state})'}")
