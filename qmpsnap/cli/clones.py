"""`qmpsnap template`, `clone` and `fork`: many machines that go on from one guest."""

from __future__ import annotations

import os
import shlex
from contextlib import AsyncExitStack

import click

import qmpsnap
from qmpsnap.cli.app import verb
from qmpsnap.cli.machine import launcher_given
from qmpsnap.cli.options import FILE, MOMENT, dry_run
from qmpsnap.cli.output import chain_lines, emit, json_line, start_lines
from qmpsnap.cli.runner import NextStep, current_app, run, run_alone, show_plan, show_steps
from qmpsnap.cli.signals import Signals
from qmpsnap.errors import NotFound
from qmpsnap.fork import Child, plan_fork
from qmpsnap.model.graph import draw
from qmpsnap.model.printable import printable
from qmpsnap.model.template import partial_directory
from qmpsnap.model.units import size
from qmpsnap.plan.intent import Checkpoint
from qmpsnap.plan.plan import Plan
from qmpsnap.template import Template
from qmpsnap.template_making import plan_template
from qmpsnap.vm import VM

_END = "running until Ctrl-C"
_IMAGES: NextStep = ("create-images", {"beside": "each layer", "to-show": "that it is needed"}, "host")
_ENDED = "all of them have ended; this machine writes to the same files as before:"


@verb(
    "template",
    example="qmpsnap -s /run/vm1/qmp.sock --launcher ./start.sh template booted /srv/templates/web",
    short_help="Save the guest as a template, from which clones start.",
)
@click.argument("name", metavar="[NAME", type=MOMENT, required=False)
@click.argument("directory", metavar="DIR]", type=FILE, required=False)
@click.option(
    "--remove",
    type=FILE,
    metavar="PATH",
    help="Remove the template in this directory, with the images beside the layers. If the directory is "
    "gone, give one of these images. [default: make a template]",
)
@dry_run
def template(name: str | None, directory: str | None, remove: str | None) -> None:
    """Make a template of the checkpoint NAME in the new directory DIR; take the checkpoint if none exists.

    The checkpoint is taken in the mode that pauses the guest for the shortest time, and the guest keeps
    running. The layers of the disks must not change as long as the template exists: an empty image beside
    each, STEM.NAME-TOKEN.template.qcow2, shows this to other commands.

    With --remove no machine is needed, nor -s.
    """
    if remove is not None:
        if name is not None:
            raise click.UsageError("--remove names the template itself: omit NAME and DIR")
        _remove(remove)
        return
    if name is None or directory is None:
        raise click.UsageError("give NAME and DIR, or --remove PATH")
    _make(name, directory)


def _remove(path: str) -> None:
    app = current_app()
    if app.dry_run:
        files = run_alone(lambda _: _removable(path))
        show_steps(("remove-template", {"path": path, "files": files}, "host"))
        return

    async def work(_: Signals) -> tuple[str, ...]:
        return await qmpsnap.remove_template(path)

    removed = run_alone(work)
    if app.json:
        emit(json_line(op="remove-template", path=path, removed=list(removed)))
    else:
        emit(f"{path}: removed", *(f"removed {file}" for file in removed))


async def _removable(path: str) -> list[str]:
    """The images that would be removed with a template; one of these may be given in its place."""
    if os.path.isfile(path):  # noqa: PTH113
        return [path]
    try:
        return [*(await qmpsnap.open_template(path)).record.keepers]
    except NotFound:
        if os.path.isdir(unfinished := partial_directory(os.path.abspath(path))):  # noqa: PTH100, PTH112
            return [unfinished]
        raise


def _make(name: str, directory: str) -> None:
    app = current_app()
    launcher_given(app, "template")

    async def work(vm: VM, signals: Signals) -> Template[VM] | Plan | None:
        if app.dry_run:
            return await plan_template(vm, directory, name)
        exists = bool((await vm.moments()).named(name))
        with signals.undone():
            if exists:
                return await vm.freeze_template(directory, of=name)
            return await vm.freeze_template(directory, name=name)

    result = run(work)
    if result is None:
        show_steps(*_by_helper(name, directory))
    elif isinstance(result, Plan):
        show_plan(result, *_by_helper(name, directory))
    elif app.json:
        emit(json_line(op="template", **result.to_json()))
    else:
        emit(*_template_lines(result, app.launcher or ""))


@verb(
    "clone",
    example="qmpsnap --launcher ./start.sh clone /srv/templates/web",
    short_help="Start a machine from a template.",
)
@click.argument("directory", metavar="DIR", type=FILE)
@click.option(
    "--keep",
    type=FILE,
    metavar="NEWDIR",
    help="New directory for the overlays, which stay there. [default: they are removed at the end]",
)
def clone(directory: str, keep: str | None) -> None:
    """Start a machine whose guest goes on from the state in the template DIR; it runs until Ctrl-C.

    It listens for QMP on the socket that is printed. Its disks are new overlays.
    """
    app = current_app()
    launcher = launcher_given(app, "clone")

    async def serve(signals: Signals) -> None:
        async with AsyncExitStack() as stack:
            source = await qmpsnap.open_template(directory, launcher=launcher)
            vm = await stack.enter_async_context(source.clone(keep=keep))
            _tell(vm, as_json=app.json)
            active = {name: disk.active.file for name, disk in (await vm.graph()).disks.items()}
            await _until_ctrl_c(signals, as_json=app.json)
        if keep is not None and not app.json:
            emit(*start_lines(active))

    run_alone(serve)


@verb(
    "fork",
    example="qmpsnap -s /run/vm1/qmp.sock --launcher ./start.sh fork 5",
    short_help="Start machines that go on from the state of this one.",
)
@click.argument("count", metavar="N", type=click.IntRange(min=1))
@click.option(
    "--of", type=MOMENT, metavar="NAME", help="Checkpoint to go on from. [default: the present state]"
)
@dry_run
def fork(count: int, of: str | None) -> None:
    """Start N machines whose guests go on from the state of this one; they run until Ctrl-C.

    Each is printed as soon as it runs, with the socket on which it listens for QMP. This machine keeps
    running, or stays paused. At the end its disks write to the same files as before.
    """
    app = current_app()
    launcher_given(app, "fork")

    if app.dry_run:
        _plan_fork(count, of)
        return

    async def serve(vm: VM, signals: Signals) -> None:
        with signals.undone():
            async with vm.fork(count, of=of) as children:
                failed: qmpsnap.QmpsnapError | None = None
                async for child in children:
                    failed = failed or child.error
                    _tell_child(child, as_json=app.json)
                if failed is not None and count == 1:
                    raise failed
                await _until_ctrl_c(signals, as_json=app.json)
            if not app.json:
                emit(
                    _ENDED,
                    *(f"{disk.name}: {draw(disk.files)}" for disk in (await vm.graph()).disks.values()),
                )

    run(serve)


def _plan_fork(count: int, of: str | None) -> None:
    plan = run(lambda vm, _: plan_fork(vm, of=of or ""))
    if plan is None:
        show_steps(*_by_fork(of or "", count))
        return
    intent = plan.intent
    assert isinstance(intent, Checkpoint)  # noqa: S101 - planned as one
    delete = ("delete-checkpoint", {"checkpoint": intent.name, "overlays": "committed"}, "host")
    show_plan(plan, *_by_fork(intent.name, count), delete)


def _by_fork(name: str, count: int) -> tuple[NextStep, ...]:
    """What a fork does once the checkpoint exists, but for its deletion."""
    return (
        _IMAGES,
        ("start-helper", {"checkpoint": name, "memory": "temporary"}, "host"),
        ("write-state", {"by": "the helper", "file": "temporary"}, "host"),
        ("start-children", {"number": count, "each-on": "overlays of its own"}, "host"),
        ("end-children", {"at": "Ctrl-C", "and-remove": "all files that were made for them"}, "host"),
    )


def _template_lines(made: Template[VM], launcher: str) -> list[str]:
    """What was made, of which checkpoint, how a clone starts, and from which files to start the machine."""
    memory = size(made.record.fingerprint.memory)
    text = [f"{printable(made.directory)}: template of {made.name!r}, {memory} of memory"]
    done = made.taken
    if done is None:
        text.append(f"the checkpoint {made.name!r} existed; this machine was not touched")
    else:
        paused = f"; the guest was paused for {done.standstill_s * 1000:.0f} ms" if done.standstill_s else ""
        text.append(f"the checkpoint {made.name!r} did not exist, and was taken{paused}")
        text += [line for disk, files in done.chains.items() for line in chain_lines(disk, draw(files))]
    text += [f"no image keeps the layer {printable(layer)}" for layer in made.unkept]
    clone = shlex.join(["qmpsnap", "--launcher", launcher, "clone", made.directory])
    text.append(f"to start a clone: {printable(clone)}")
    return [*text, *(start_lines(done.active) if done is not None else ())]


def _by_helper(name: str, directory: str) -> tuple[NextStep, ...]:
    """What is done once the checkpoint exists."""
    return (
        _IMAGES,
        ("start-helper", {"checkpoint": name, "memory": f"{directory}/memory"}, "host"),
        ("write-state", {"by": "the helper", "file": f"{directory}/state"}, "host"),
        ("write-record", {"file": f"{directory}/template.json"}, "host"),
    )


def _tell_child(child: Child[VM], *, as_json: bool) -> None:
    if child.machine is not None:
        _tell(child.machine, number=child.number, as_json=as_json)
    elif as_json:
        emit(json_line(number=child.number, error=str(child.error)))
    else:
        emit(f"{child.number}: not started: {printable(str(child.error))}")


def _tell(vm: VM, *, number: int | None = None, as_json: bool) -> None:
    """Print where a machine can be reached; `number` is that of a fork's child."""
    socket = vm.qmp if isinstance(vm, qmpsnap.LaunchedVM) else ""
    if as_json:
        emit(json_line(number=number or 0, pid=vm.pid, qmp=socket))
    else:
        head = "" if number is None else f"{number}: "
        emit(f"{head}pid {vm.pid}, {printable(socket) or 'no socket'}")


async def _until_ctrl_c(signals: Signals, *, as_json: bool) -> None:
    if not as_json:
        emit(_END)
    with signals.ends() as end:
        await end.wait()
