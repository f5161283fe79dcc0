"""`qmpsnap checkpoint`: VM state and disks of one instant."""

from __future__ import annotations

from collections.abc import Iterator

import click

from qmpsnap.cli.app import verb
from qmpsnap.cli.options import DISK, FILE, dry_run, plain, progress, via, wait
from qmpsnap.cli.picture import of_plan
from qmpsnap.cli.runner import NextStep, change, command, current_app
from qmpsnap.plan.intent import Checkpoint, MakeStore, Mode, Via
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.vmstate.store import conversion
from qmpsnap.run.outcome import Done, Hooks
from qmpsnap.store import with_store
from qmpsnap.vm import VM


@verb(
    "checkpoint",
    example="qmpsnap -s /run/vm1/qmp.sock checkpoint booted --mode in-place",
    short_help="Save memory, devices and disks as of one instant.",
)
@click.argument("name")
@click.option(
    "--mode",
    type=click.Choice(["stop", "background", "in-place", "internal"]),
    default="stop",
    show_default=True,
    help="How the memory is saved; see above.",
)
@click.option(
    "--memory",
    type=FILE,
    metavar="FILE",
    help="File for the VM state; not with --mode internal. [default: beside the first disk's active layer]",
)
@click.option(
    "--leave",
    multiple=True,
    type=DISK,
    metavar="DISK",
    help="With --mode internal: a writable disk to leave out. May be repeated. [default: none]",
)
@click.option(
    "--convert",
    is_flag=True,
    help="Convert an existing checkpoint of the mode stop or background, so that the same QEMU can revert; "
    "needs --launcher. [default: take a new checkpoint]",
)
@via
@wait
@progress
@plain
@dry_run
@of_plan
def checkpoint(
    name: str,
    *,
    mode: Mode,
    memory: str | None,
    leave: tuple[str, ...],
    convert: bool,
    via: Via | None,
    plain: bool,
) -> None:
    """Save the guest's memory, devices and disks as of one instant, under NAME.

    \b
    stop        The guest is paused while its memory is written to a file.
                To revert takes a new QEMU.
    background  The guest keeps running while its memory is written; it is
                paused for some tens of milliseconds. To revert takes a new
                QEMU; with --launcher a second QEMU converts the memory then,
                and the same QEMU can revert, too. A guest that is paused is
                saved as with stop, with --launcher as with in-place.
    in-place    The guest is paused as with stop. The same QEMU can revert.
    internal    Memory and disks go into the disks' own images: every writable
                disk must be qcow2. The guest is paused. The same QEMU can
                revert; what was written since is then lost.

    All modes but internal put an overlay on each writable disk, raw or qcow2.
    """  # noqa: D301 - click's own sign for lines that stay as they are
    if mode == "internal" and memory is not None:
        raise click.UsageError("--mode internal saves the memory in an image: omit --memory")
    if mode != "internal" and (leave or via is not None):
        raise click.UsageError(f"--leave and --via go with --mode internal, not with {mode}")
    launches = current_app().launcher is not None
    if convert:
        source = click.get_current_context().get_parameter_source("mode")
        if source is not click.core.ParameterSource.DEFAULT or memory is not None or plain:
            raise click.UsageError(
                "--convert is for a checkpoint that exists: omit --mode, --memory, --plain"
            )
        if not launches:
            raise click.UsageError("--convert starts another QEMU: give --launcher COMMAND")
        change(MakeStore(name), do=_make_store)
        return
    store = launches and mode == "background"

    async def take(vm: VM, plan: Plan, hooks: Hooks) -> Done:
        done = await vm.run(plan, hooks)
        return await with_store(vm, done, name, vm.launcher, hooks) if mode == "background" else done

    def then(_: Done) -> list[str]:
        if mode != "stop":
            return []
        prepare = command("revert", name, "--prepare")
        return [f"only a new QEMU can revert to it: {prepare} prints the files to start it from"]

    change(
        Checkpoint(name, mode, memory or "", plain, leave, via, store),
        then,
        do=take,
        follows=_by_helper if store else lambda _: (),
    )


def _by_helper(plan: Plan) -> Iterator[NextStep]:
    """The steps that turn the memory into a store, once the checkpoint is taken."""
    store = conversion(plan)
    if store is not None and isinstance(store.intent, MakeStore):
        arguments = {"checkpoint": store.intent.name, "command": current_app().launcher}
        yield "start-helper", {**arguments, "which-gets": "all commands from here on"}, "host"
        for step in store.steps:
            yield step.command, step.arguments, step.on


async def _make_store(vm: VM, plan: Plan, hooks: Hooks) -> Done:
    """Make the store; it is planned again when the helper QEMU has been started."""
    assert isinstance(plan.intent, MakeStore)  # noqa: S101 - as given above
    return await vm.make_store(plan.intent.name, hooks=hooks)
