"""The start of a clone in two parts: a QEMU that waits for VM state, and the load of the devices' state."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic

from qmpsnap.errors import CommandFailed, MachineDiffers, Unsupported
from qmpsnap.helper import expendable, loading, throwaway
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.parse_machine import parse_memory, parse_shared_memory
from qmpsnap.model.start import USES_PATH, GuestMemory, Start
from qmpsnap.model.template import TemplateRecord
from qmpsnap.model.view import DiskView
from qmpsnap.one_machine import M, OneMachine, Starter
from qmpsnap.plan.intent import Load
from qmpsnap.run import template_files
from qmpsnap.run.disk import in_thread
from qmpsnap.run.fifo import opened
from qmpsnap.run.os_errors import unusable
from qmpsnap.starting import another
from qmpsnap.waking import ENDED, Waker, woken


@dataclass(frozen=True, slots=True)
class Waiting(Generic[M]):
    """A QEMU that maps a template's memory, on overlays of its own, and waits for the devices' state.

    Attributes:
        vm: The machine.
        disks: The overlay of each disk, by the disk's name.
        directory: Its private directory.
    """

    vm: M
    disks: Mapping[str, str]
    directory: str


@asynccontextmanager
async def waiting(
    start: Starter[M],
    views: Sequence[DiskView],
    memory: GuestMemory,
    *,
    directory: str,
    keep: str = "",
) -> AsyncIterator[Waiting[M]]:
    """Start a QEMU for a clone, which ends with the block; its overlays are removed unless they are kept.

    The memory may still be written meanwhile: QEMU does not touch it before it loads the devices' state.

    Args:
        start: Starts the QEMU.
        views: How each disk is read.
        memory: The template's memory.
        directory: Where a private directory is created for it; "": among the system's temporary files.
        keep: A directory for the overlays, which stay; "": none.

    Raises:
        MachineDiffers: When the launcher does not use the memory of the `Start`.
        InvalidTarget: When an overlay cannot be created.
        Refused, TargetError: As the launcher does.
    """
    async with throwaway(views, directory, keep=keep) as (disks, own):
        own_start = Start(disks=disks, memory=memory, incoming=True, paused=True, directory=own)
        async with another(start, own_start) as vm:
            vm.records_in(posixpath.join(keep or own, "records"))
            await expendable(vm, refuse_other_memory(vm, memory))
            yield Waiting(vm, disks, own)


async def resume(clone: Waiting[M], record: TemplateRecord, directory: str) -> None:
    """Load the devices' state of a complete template, and resume the guest.

    Args:
        clone: The QEMU.
        record: The template's record.
        directory: The template's directory.

    Raises:
        InvalidTarget: When a file of the template was changed; nothing was loaded.
        MachineDiffers: When it is another machine; nothing was loaded.
    """
    await in_thread(partial(template_files.refuse_changed, directory, record))
    load = Load(record.name, record.kept_state(directory), clone.disks, mapped=True, resume=True)
    await expendable(clone.vm, clone.vm.do(load))


@asynccontextmanager
async def resuming(
    clone: Waiting[M], name: str, state: KeptState
) -> AsyncIterator[Callable[[str, TemplateRecord], Awaitable[None]]]:
    """Let a QEMU wait for the devices' state of a template that is not complete yet.

    Args:
        clone: The QEMU.
        name: Name of the template.
        state: Where the state will be.

    Yields:
        A function to be called once the template is complete, with its directory and its record. It does the
        rest, and raises what `resume` raises.
    """
    fifo = posixpath.join(clone.directory, "devices")
    load = Load(name, state, clone.disks, mapped=True, resume=True, fifo=fifo, unfinished=True)
    async with loading(clone.vm, load) as go_on:

        async def go_on_with(directory: str, record: TemplateRecord) -> None:
            await in_thread(partial(template_files.refuse_changed, directory, record))
            try:
                with opened(state.file) as descriptor:
                    await go_on(descriptor)
            except OSError as error:
                raise unusable(state.file, error, "read") from error

        yield go_on_with


async def wake_clone(vm: M, wake: Waker[M] | None, *, of: str) -> None:
    """Call the hook, if there is one, with a clone whose guest runs.

    Args:
        vm: The machine, which ends if the hook fails.
        wake: The hook.
        of: Name of the template.

    Raises:
        Incomplete: When the hook raises an error, which is the cause.
    """
    await woken(vm, wake, what=f"the start of a clone of {of!r}", hint=ENDED)


async def memory_of(vm: OneMachine) -> int:
    """Return the size of a guest's memory in bytes; refuse memory that a template cannot hold.

    Raises:
        Unsupported: When it is in the objects of NUMA nodes, or was extended by plugged devices; when there
            is no guest.

    QAPI: qom-get (qom.json), query-memory-size-summary (machine.json).
    """
    await vm.status()
    if not await vm.execute("qom-get", {"path": "/machine", "property": "memory-backend"}):
        raise Unsupported(
            "no clone can have the guest's memory, which is in the objects of its NUMA nodes",
            feature="a clone of such memory",
            hint="start the machine with -m alone, or with one object (-machine memory-backend=)",
        )
    memory = parse_memory(await vm.execute("query-memory-size-summary"))
    if memory.plugged_memory:
        raise Unsupported(
            f"no clone can have the guest's memory, {memory.plugged_memory} bytes of which are plugged in",
            feature="a clone of such memory",
            hint="unplug them, or start the machine with as much memory (-m)",
        )
    return memory.base_memory


async def refuse_other_memory(vm: OneMachine, memory: GuestMemory) -> None:
    """Refuse a machine unless its memory is the given file, mapped as given, and it has no other shared one.

    The helper leaves out all shared memory when it saves its state, and a clone loads no shared memory.

    Raises:
        MachineDiffers: When it is not; the message names the properties that differ.

    QAPI: qom-get (qom.json), query-memdev (machine.json).
    """
    expected: Mapping[tuple[str, str], object] = {
        ("/machine", "memory-backend"): memory.id,
        (f"/objects/{memory.id}", "mem-path"): memory.file,
        (f"/objects/{memory.id}", "share"): memory.share,
        (f"/objects/{memory.id}", USES_PATH): memory.uses_path,
    }

    async def differs(path: str, name: str, value: object) -> str:
        try:
            actual = await vm.execute("qom-get", {"path": path, "property": name})
        except CommandFailed as error:
            actual = error.desc
        same = actual in {value, f"/objects/{value}"}
        return "" if same else f"{name} of {path} is {actual!r}, not {value!r}"

    answers = await asyncio.gather(*(differs(*where, value) for where, value in expected.items()))
    shared = parse_shared_memory(await vm.execute("query-memdev"))
    problems = [answer for answer in answers if answer]
    problems += [f"the object {name!r} is shared memory, too" for name in shared if name != memory.id]
    if problems:
        raise MachineDiffers(
            f"the launcher did not use the memory that it was given: {'; '.join(problems)}",
            differences=problems,
            hint="append the arguments of the Start to the command line ([..., *start.arguments]), and give "
            "any other memory object share=off",
        )
