"""What embedders hold: one machine, with a method for each thing that can be wanted of it.

Each verb is exactly `run(await plan(intent))`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from qmpsnap.errors import ConnectFailed
from qmpsnap.model.arguments import check, refuse, texts
from qmpsnap.plan import planner
from qmpsnap.plan.intent import Commit, Intent, Mirror, PrepareRevert, Snapshot, Stream
from qmpsnap.plan.plan import Plan
from qmpsnap.run.executor import Executor
from qmpsnap.run.outcome import check_hooks
from qmpsnap.run.parallel import both
from qmpsnap.run.paths import absolute, absolute_each
from qmpsnap.run.start_check import StartCheck
from qmpsnap.vm_jobs import JobVerbs
from qmpsnap.vm_moments import MomentVerbs
from qmpsnap.vm_monitor import MonitorVerbs
from qmpsnap.vm_state import StateVerbs

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from qmpsnap.model.files import Files
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.machine import Machine, Status
    from qmpsnap.plan.intent import Ending, Folded, Format, OnError, Sync
    from qmpsnap.plan.scene import Scene
    from qmpsnap.run.live import LiveTarget
    from qmpsnap.run.outcome import Done, Hooks
    from qmpsnap.run.session import Event

__all__ = ["VM"]


class VM(JobVerbs, MomentVerbs, MonitorVerbs, StateVerbs):
    """One machine.

    Methods that change something read the graph, plan, run, and read the graph again. Those on disks that
    have nothing in common run side by side. Two must not on the same disk, and what keeps the guest's memory,
    deletes or goes back takes the whole machine: then what takes moments is waited for, and behind a stream,
    commit or mirror a call is refused with Busy, or waits with `wait=True`. A cancelled call awaits what
    was sent, then undoes or finishes it as its docstring says, in at most 30 s; the next call on the same VM
    works.

    What is handed in is looked at before anything is sent: a wrong word, type, path or number is a
    `BadArgument`, which is a ValueError, too.

    Attributes:
        name: How the machine is called in logs.
        pid: QEMU's process where it is known, else None.
    """

    _target: LiveTarget

    def __init__(self, target: LiveTarget, *, state_dir: str = "") -> None:
        self._target = target
        self._executor = Executor(target)
        self._state_dir = state_dir
        self._started = StartCheck(target, state_dir)
        self.name = target.name

    @property
    def pid(self) -> int | None:
        """QEMU's process where it is known, else None."""
        return self._target.session.peer_pid

    # -- see ---------------------------------------------------------------------------------------

    async def graph(self) -> Graph:
        """Every disk with its chain, and every node, as QEMU has them now.

        Raises:
            LinkLost: When the link is gone.
            TargetError: When QEMU does not answer within the session's reply limit.

        QAPI: query-block, query-blockstats, query-named-block-nodes (block-core.json).
        """
        graph = await self._target.graph()
        await self._started.warnings(graph)
        return graph

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the files that the machine was started from, a line each; also in each result.

        A guest that writes into a layer on which other images stand changes what they read: so it is when
        the machine was started from an old file after a snapshot. It is looked for when the graph is first
        read (before that this is empty), and logged once, as "machine.started_below".
        """
        return self._started.found

    def events(self, sink: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Call `sink` with each of QEMU's events while the block lasts; nothing is queued."""
        if not callable(sink):
            refuse("sink", sink, "give a function that takes an event")
        return self._target.session.subscribe(sink)

    async def wait_lost(self) -> str:
        """Return once the link to QEMU is lost, with the reason."""
        await self._target.session.wait_lost()
        return self._target.session.close_reason

    async def reconnect(self) -> None:
        """Connect again after the link was lost; jobs that ended meanwhile are then known.

        Raises:
            ConnectFailed: When it cannot be done: QEMU has ended, or the socket was given to us.
        """
        if not await self._target.relink():
            raise ConnectFailed(
                f"{self.name} cannot be reached any more", hint="check whether QEMU is still running"
            )

    # -- plan and run ------------------------------------------------------------------------------

    async def plan(self, intent: Intent) -> Plan:
        """What would be done, to the last argument; nothing is sent that changes anything.

        Raises:
            Refused: One of its kinds, when it cannot or must not be done.
        """
        if not isinstance(intent, Intent):
            refuse("intent", intent, "give an intent, as qmpsnap.Snapshot(...)")
        scene = await self._scene(intent)
        plan = planner.plan(intent, scene)
        return replace(plan, notes=(*await self._started.warnings(scene.graph), *plan.notes))

    async def run(self, plan: Plan, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Run a plan; see `Executor.run` for what it raises and what a cancelled run leaves."""
        if not isinstance(plan, Plan):
            refuse("plan", plan, "give a plan that plan() returned")
        check_hooks(hooks)
        check("wait", wait, bool)
        return await self._executor.run(plan, hooks, wait=wait)

    async def _do(self, intent: Intent, hooks: Hooks | None, *, wait: bool = False) -> Done:
        check_hooks(hooks)
        check("wait", wait, bool)
        make = self.when_idle if wait else self.plan
        return await self._executor.do(partial(make, intent), hooks, wait=wait)

    async def _scene(self, intent: Intent) -> Scene:
        graph, (jobs, features) = await both(
            self._target.graph, partial(both, self._target.jobs, self._target.features)
        )
        files, (machine, standing) = await both(
            partial(self._files, intent, graph), partial(self._machine_state, intent, graph)
        )
        return replace(self._seen(graph, files, jobs, features, machine), standing=standing)

    async def _files(self, intent: Intent, graph: Graph) -> Files:
        question = planner.ask(intent, graph, state_dir=self._state_dir)
        files = await self._target.look(question, graph)
        more = planner.ask_again(intent, graph, files, state_dir=self._state_dir)
        return files if more is None else await self._target.look(more, graph)

    async def _machine_state(self, intent: Intent, graph: Graph) -> tuple[Machine | None, Status | None]:
        """What the planner has to know of the machine: all, whether it runs or migrates, or nothing."""
        if planner.needs_machine(intent):
            return await self._target.machine(graph), None
        return None, await self._target.standing() if planner.needs_standing(intent) else None

    # -- verbs -------------------------------------------------------------------------------------

    async def snapshot(
        self,
        name: str,
        *,
        disks: Sequence[str] = (),
        files: Mapping[str, str | os.PathLike[str]] | None = None,
        use_existing: bool = False,
        plain: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Put new overlays on disks, all at one instant, while the guest runs.

        After success each disk writes to its overlay, and the layer beneath holds the moment. After
        failure no node and no file of ours is left. Cancelled before the transaction was sent,
        nothing is left; cancelled after it, the snapshot stands.

        Args:
            name: The moment's name.
            disks: Disks in any spelling; none: every writable disk with a medium.
            files: Where a disk's overlay goes; else beside the active layer, `STEM-of-base.NAME.qcow2`,
                or `STEM-of-base.DISK.NAME.qcow2` where two would be one.
            use_existing: Whether the files are there already; size, backing and format are checked.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            TargetExists: When an overlay's file is there already.
            InvalidTarget: When it cannot be made there, or does not fit.
            Busy: When a job holds one of the chains.
            NotFound, AmbiguousName: When a disk is not there, or its name fits two.
            CommandFailed: When QEMU refuses the transaction; nothing was changed.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: transaction, blockdev-snapshot-sync (block-core.json).
        """
        if not isinstance(files, Mapping | None):
            refuse("files", files, "give a mapping of disks to paths")
        paths = {disk: absolute("files", file) for disk, file in (files or {}).items()}
        taken = texts("disks", disks) or texts("files", tuple(paths))
        return await self._do(Snapshot(name, taken, paths, use_existing, plain), hooks, wait=wait)

    async def stream(
        self,
        disk: str,
        *,
        base: str | None = None,
        into: str | None = None,
        on_error: OnError = "report",
        speed: int = 0,
        plain: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Copy backing data up into a layer, so that what stood between is not needed any more.

        After success the layers between stay valid files. Failed or cancelled, the chain is as it
        was; what was copied stays in the layer and reads the same.

        Args:
            disk: The disk in any spelling.
            base: Layer that stays below (excluded from the copy); None: none stays.
            into: Layer that receives the data; None: the active layer.
            on_error: "report" ends the job with the error, "stop" pauses it, "ignore" tries again.
            speed: Limit in bytes/s; 0: none.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            NotInChain: When a layer is not in the chain, or `base` is not below `into`.
            Busy: When a job holds the chain.
            JobFailed: When QEMU ends the job with an error; `.error` is its text.
            JobPaused: When an I/O error paused the job.

        QAPI: block-stream (block-core.json).
        """
        return await self._do(Stream(disk, base, into, on_error, speed, plain), hooks, wait=wait)

    async def commit(
        self,
        disk: str,
        *,
        top: str | None = None,
        base: str | None = None,
        keep_overlay: bool = False,
        look_in: Iterable[str | os.PathLike[str]] = (),
        invalidate: Iterable[str | os.PathLike[str]] = (),
        folded: Folded = "rename",
        discard_internal: bool = False,
        on_error: OnError = "report",
        speed: int = 0,
        plain: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Fold the layers from top down to just above base into base.

        On success the chain no longer holds them; their files are renamed to FILE.invalid, for they
        hold no moment any more. On failure or cancel before the pivot the guest reads what it read,
        no job is left, and the base with what reads through it is invalid: `.invalid` names them.

        Args:
            disk: The disk in any spelling.
            top: Newest layer to fold (included); None: the active layer, which ends in a pivot.
            base: Layer that receives the data (kept), below `top`; None: the deepest one.
            keep_overlay: With the active layer as top: end at READY, the chain unchanged.
            look_in: More directories in which images may stand on what changes.
            invalidate: Images that stand on what changes and are given up.
            folded: "rename" to FILE.invalid, "remove", or "keep".
            discard_internal: Whether internal snapshots and persistent bitmaps may be lost.
            on_error: "report" ends the job with the error, "stop" pauses it, "ignore" tries again.
            speed: Limit in bytes/s; 0: none.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            NotInChain: When a layer is not in the chain, or `base` is not below `top`.
            Busy: When a job holds the chain.
            StillNeeded: When another image stands on what would change; `.by` names each.
            WouldLose: When internal snapshots or persistent bitmaps would be lost.
            JobFailed: When QEMU ends the job with an error; `.error` is its text.
            JobPaused: When an I/O error paused the job.

        QAPI: block-commit, job-complete (block-core.json, job.json).
        """
        intent = Commit(
            disk=disk,
            top=top,
            base=base,
            keep_overlay=keep_overlay,
            look_in=absolute_each("look_in", look_in),
            invalidate=absolute_each("invalidate", invalidate),
            folded=folded,
            discard_internal=discard_internal,
            on_error=on_error,
            speed=speed,
            plain=plain,
        )
        return await self._do(intent, hooks, wait=wait)

    async def mirror(
        self,
        disk: str,
        target: str | os.PathLike[str],
        *,
        ending: Ending,
        sync: Sync = "full",
        format: Format | None = None,  # noqa: A002 - QEMU's word
        use_existing: bool = False,
        discard_internal: bool = False,
        on_error: OnError = "report",
        speed: int = 0,
        plain: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Copy a disk elsewhere while the guest writes, then move to the copy or leave it.

        After a pivot the disk writes to the copy. After "finish" the copy holds the disk as of the
        end of the call. Failed or cancelled before the pivot, the chain is as it was, and a target
        that we made is removed.

        Args:
            disk: The disk in any spelling.
            target: Path of the copy.
            ending: "pivot" or "finish".
            sync: "full", "top" (the active layer alone) or "none" (new writes only, pivot only).
            format: "raw" or "qcow2"; None: that of the active layer.
            use_existing: Whether the target is there already; size, backing and format are checked.
            discard_internal: Whether internal snapshots and persistent bitmaps may be left behind.
            on_error: "report" ends the job with the error, "stop" pauses it, "ignore" tries again.
            speed: Limit in bytes/s; 0: none.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            TargetExists: When the target is there already.
            InvalidTarget: When it cannot be made there, or does not fit.
            Busy: When a job holds the chain.
            WouldLose: When the pivot would leave internal snapshots or persistent bitmaps behind.
            JobFailed: When QEMU ends the job with an error; `.error` is its text.
            JobPaused: When an I/O error paused the job.

        QAPI: drive-mirror, job-complete, block-job-cancel (block-core.json, job.json).
        """
        intent = Mirror(
            disk=disk,
            target=absolute("target", target),
            ending=ending,
            sync=sync,
            format=format,
            use_existing=use_existing,
            discard_internal=discard_internal,
            on_error=on_error,
            speed=speed,
            plain=plain,
        )
        return await self._do(intent, hooks, wait=wait)

    @asynccontextmanager
    async def reverted(
        self, name: str, launcher: Callable[[Mapping[str, Path]], AbstractAsyncContextManager[VM]]
    ) -> AsyncIterator[VM]:
        """Go back to a checkpoint in a new QEMU, which lasts as long as the block.

        This one goes on; if the two must not run side by side, `launcher` ends it. When the new one cannot be
        started or cannot load the memory, the overlays that were made for it are removed.

        Args:
            name: The checkpoint's name.
            launcher: Given the file that each disk is to start from, starts a QEMU with `-S -incoming
                defer`, otherwise as this one was; `lambda active: qmpsnap.launch([...])` is one.

        Yields:
            The new machine, its guest as it was at the checkpoint.

        Raises:
            Refused, TargetError, LinkLost: As `revert_prepare`, the launcher and `revert_incoming` do.
        """
        if not callable(launcher):
            refuse("launcher", launcher, "give a function that starts QEMU from the files")
        plan = await self.plan(PrepareRevert(name))
        try:
            made = await self._executor.run(plan)
        except anyio.get_cancelled_exc_class():  # they may be whole all the same
            await self._put_away(plan)
            raise
        active = {disk: Path(file) for disk, file in made.prepared.items()}
        loaded = False
        try:
            async with launcher(active) as vm:
                await vm.revert_incoming(name)
                loaded = True
                yield vm
        finally:
            if not loaded:
                await self._put_away(plan)

    async def _put_away(self, plan: Plan) -> None:
        with anyio.CancelScope(shield=True):
            await self._executor.put_away(plan)
