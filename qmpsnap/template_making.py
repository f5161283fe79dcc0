"""How a template is made: of a checkpoint, which a second QEMU loads and writes to the template's files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import anyio

from qmpsnap.cloning import memory_of, refuse_other_memory
from qmpsnap.errors import QmpsnapError
from qmpsnap.helper import Source, expendable, loaded, source_of
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.start import GuestMemory
from qmpsnap.model.template import TemplateDisk, TemplateRecord
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.own_checkpoint import own, planned
from qmpsnap.plan.intent import SaveDevices
from qmpsnap.plan.plan import Plan
from qmpsnap.run import template_files
from qmpsnap.run.disk import in_thread, made_in_thread
from qmpsnap.run.file_limit import OPERATION, require_room
from qmpsnap.run.keepers import Keepers, remove_left
from qmpsnap.run.template_layers import layers_of, refuse_of_fork, refuse_written
from qmpsnap.template import Template


async def freeze(
    vm: OneMachine,
    directory: str,
    name: str,
    launcher: Starter[M],
    *,
    keepers: bool = True,
) -> Template[M]:
    """Take a checkpoint of a machine with the shortest standstill, and make a template of it.

    See `VM.freeze_template`.

    Args:
        vm: The machine.
        directory: The directory; absolute.
        name: Name of the checkpoint and of the template.
        launcher: Starts the helper QEMU.
        keepers: As for `template_of`.
    """
    require_room(2 * OPERATION)  # the checkpoint, and the helper
    await in_thread(partial(template_files.refuse_place, directory))
    await memory_of(vm)
    if keepers:
        await _refuse_of_fork(vm)
    async with own(vm, name) as checkpoint:
        taken = await checkpoint.take()
        source = await checkpoint.source()
        frozen = await template_of(source, directory, launcher, keepers=keepers)
        checkpoint.keep()
    frozen.taken = taken
    return frozen


async def plan_template(vm: OneMachine, directory: str, name: str) -> Plan | None:
    """Plan the checkpoint that is taken for a template, and refuse what `freeze` would; None: it exists.

    Args:
        vm: The machine.
        directory: The directory; absolute.
        name: Name of the checkpoint.
    """
    await in_thread(partial(template_files.refuse_place, directory))
    if (await vm.moments()).named(name):
        await source_of(vm, name)
        return None
    await memory_of(vm)
    await _refuse_of_fork(vm)
    return await planned(vm, name)


async def _refuse_of_fork(vm: OneMachine) -> None:
    chains = (await vm.graph()).chains()
    await in_thread(partial(refuse_of_fork, chains))


async def template_of(
    source: Source,
    directory: str,
    launcher: Starter[M],
    *,
    scratch: str = "",
    lasting: bool = True,
    keepers: bool = True,
    began: Callable[[Sequence[DiskView], GuestMemory, str, KeptState], None] | None = None,
    finished: Callable[[Template[M]], Awaitable[None]] | None = None,
) -> Template[M]:
    """Make a template of a checkpoint; the machine is not changed. See `VM.freeze_template`.

    Args:
        source: The checkpoint; all that does not need its memory is done before it is complete.
        directory: The directory; absolute.
        launcher: Starts the helper QEMU.
        scratch: Directory for what is thrown away.
        lasting: Whether it has to outlive a power cut: then all is on the disk.
        keepers: Whether an empty image beside each layer shows that it is needed; without them the caller
            keeps others from changing the layers.
        began: Only for one that is not `lasting`: called once the helper runs, with how each disk is read,
            the memory that a clone maps, the template's name, and where the devices' state will be. From then
            on a clone's QEMU can be started, but its guest not resumed. None: no function.
        finished: Called with the template as soon as it is complete, while the helper's QEMU ends. None: no
            function.

    Raises:
        QmpsnapError: As `VM.freeze_template`, but what concerns the checkpoint itself.
    """
    name, views = source.name, source.views
    if lasting and keepers:
        await in_thread(partial(refuse_of_fork, {view.disk: view.files for view in views}))
    unfinished = await made_in_thread(
        partial(template_files.Partial, directory, source.memory_bytes, renamed=lasting),
        template_files.Partial.close,
    )
    kept = Keepers("template" if lasting else "fork", directory)
    complete = sealed = False
    disks: Frozen[str, TemplateDisk] = Frozen()
    memory = GuestMemory(
        file=unfinished.memory, size_bytes=source.memory_bytes, block=source.block, share=True
    )

    async def protect() -> None:
        nonlocal disks
        if unfinished.swept:
            await remove_left(directory, (file for view in views for file in view.files))
        if keepers:
            await kept.create(views, name, synced=lasting)
        disks = await in_thread(partial(layers_of, views))

    async def check_helper(helper: M) -> None:
        nonlocal sealed
        await refuse_other_memory(helper, memory)
        sealed = await _seals(helper)

    async def begin() -> None:
        if source.foreseen is not None:
            await protect()
        if began is not None:
            state = source.foreseen or await source.state()
            devices = KeptState("stop", unfinished.state, "", running=True, fingerprint=state.fingerprint)
            began(views, replace(memory, share=False, sealed=sealed), name, devices)

    async def finish() -> Template[M]:
        nonlocal complete
        record = await _finish(
            unfinished, source, disks, sealed=sealed, lasting=lasting, keepers=Frozen(kept.made)
        )
        complete = True
        return Template(directory, record, launcher, unkept=kept.unkept, keepers=None if lasting else kept)

    try:
        if source.foreseen is None:
            await protect()
        async with loaded(
            source, launcher, memory=memory, directory=scratch, started=check_helper, begun=begin
        ) as helper:
            await expendable(helper, helper.do(SaveDevices(name, unfinished.state)))
            if finished is not None:
                await finished(template := await finish())
        if finished is None:  # nobody waits for it: the QEMU that wrote the memory has ended by now
            template = await finish()
    except BaseException:
        with anyio.CancelScope(shield=True), suppress(QmpsnapError):
            await kept.remove()
        raise
    finally:
        with anyio.CancelScope(shield=True):
            await in_thread(partial(unfinished.close, keep=complete))
    if lasting:
        kept.release()
    return template


async def _finish(
    unfinished: template_files.Partial,
    source: Source,
    disks: Frozen[str, TemplateDisk],
    *,
    sealed: bool,
    lasting: bool,
    keepers: Frozen[str, str],
) -> TemplateRecord:
    """Complete the files of a template, whose memory and devices are all there; return its record."""
    memory, devices = await in_thread(partial(unfinished.seal, sealed=sealed, synced=lasting))
    record = TemplateRecord(
        name=source.name,
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
        fingerprint=(await source.state()).fingerprint,
        memory=memory,
        state=devices,
        sealed=sealed,
        disks=disks,
        keepers=keepers,
    )
    await in_thread(partial(refuse_written, source.views, disks))
    await in_thread(partial(unfinished.finish, record))
    return record


async def _seals(vm: OneMachine) -> bool:
    """Whether this QEMU can map a file that it may only read, without making it a ROM."""
    answer = await vm.execute("qom-list-properties", {"typename": "memory-backend-file"})
    return isinstance(answer, list) and any(
        isinstance(row, dict) and row.get("name") == "rom" for row in answer
    )
