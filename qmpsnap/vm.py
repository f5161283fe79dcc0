"""What embedders hold: one machine, with a method for each thing that can be wanted of it.

Each verb is exactly `run(await plan(intent))`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from qmpsnap.errors import ConnectFailed
from qmpsnap.jobs import Jobs
from qmpsnap.model.arguments import Text, check, refuse, texts
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Intent,
    Mirror,
    Mode,
    Restore,
    Revert,
    Save,
    Snapshot,
    Stream,
)
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.vmstate.guest import refuse_cont, refuse_stop
from qmpsnap.run.executor import Executor
from qmpsnap.run.idle import Idle
from qmpsnap.run.outcome import check_hooks
from qmpsnap.run.paths import absolute, absolute_each
from qmpsnap.run.planning import Planning

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from qmpsnap.model.graph import Graph
    from qmpsnap.model.machine import Status
    from qmpsnap.model.moments import Moments
    from qmpsnap.plan.intent import Ending, Folded, Format, Into, OnError, Sync, Via
    from qmpsnap.run.live import LiveTarget
    from qmpsnap.run.outcome import Done, Hooks
    from qmpsnap.run.session import Event


_ASKS = "query-"  # how commands begin that change nothing


class VM:
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
        jobs: Its jobs, and what an earlier client left of an operation.
    """

    def __init__(self, target: LiveTarget, *, state_dir: str = "") -> None:
        self.name = target.name
        self._target = target
        self._executor = Executor(target)
        self._planning = Planning(target, state_dir)
        self._idle = Idle(target, self._executor, self._planning)
        self.jobs = Jobs(target, self._executor, self._planning)

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
        return await self._planning.graph()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the files that the machine was started from, a line each; also in each result.

        A guest that writes into a layer on which other images stand changes what they read: so it is when
        the machine was started from an old file after a snapshot. It is looked for when the graph is first
        read (before that this is empty), and logged once, as "machine.started_below".
        """
        return self._planning.warnings

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

    async def moments(self) -> Moments:
        """Every moment that the disks hold, as of now: external ones and internal ones.

        External ones are known by our records, which lie beside the images: where QEMU's files are not
        visible from here, `records_seen` is False and only internal ones are listed.

        Raises:
            LinkLost: When the link is gone.

        QAPI: query-named-block-nodes, SnapshotInfo (block-core.json).
        """
        return await self._planning.moments()

    async def status(self) -> Status:
        """Whether the guest runs, and how it stands, as of now.

        Raises:
            LinkLost: When the link is gone.
            TargetError: When QEMU does not answer within the session's reply limit.

        QAPI: query-status (run-state.json), query-migrate (migration.json).
        """
        return await self._target.standing()

    # -- plan and run ----------------------------------------------------------------------------

    async def plan(self, intent: Intent) -> Plan:
        """What would be done, to the last argument; nothing is sent that changes anything.

        Raises:
            Refused: One of its kinds, when it cannot or must not be done.
        """
        return await self._planning.plan(intent)

    async def when_idle(self, intent: Intent) -> Plan:
        """Plan as soon as no job is in the way any more, of whichever client.

        Waits for one job after the other, without a limit, and plans again; nothing is sent. A job that
        does not end by itself is waited for some seconds at most, also when it comes to that meanwhile: one
        that stands at READY or at pending and whose client is not at work, or that is paused, by an error
        or as asked.

        Args:
            intent: What is wanted.

        Raises:
            Busy: When such a job is in the way, with what brings it on; or something that is no job.
            Refused: What `plan` raises.
            LinkLost: When the link is lost.
        """
        return await self._idle.plan(partial(self._planning.plan, intent))

    async def run(self, plan: Plan, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Run a plan; see `Executor.run` for what it raises and what a cancelled run leaves.

        The intent is planned once more first: what has come in between (a migration, a job, a layer that was
        moved or replaced, an image that is backed by what would change) is refused before anything is sent.

        Raises:
            Refused: When the planner would refuse the plan by now; nothing was sent.
        """
        if not isinstance(plan, Plan):
            refuse("plan", plan, "give a plan that plan() returned")
        check_hooks(hooks)
        check("wait", wait, bool)
        return await self._executor.run(plan, hooks, check=self._planning.check, wait=wait)

    async def _do(self, intent: Intent, hooks: Hooks | None, *, wait: bool = False) -> Done:
        check_hooks(hooks)
        check("wait", wait, bool)
        make = partial(self._planning.plan, intent)
        if wait:
            make = partial(self._idle.plan, make)
        return await self._executor.do(make, hooks, wait=wait)

    # -- the chain -------------------------------------------------------------------------------

    async def snapshot(
        self,
        name: str,
        *,
        disks: Sequence[str] = (),
        files: Mapping[str, str | os.PathLike[str]] | None = None,
        use_existing: bool = False,
        plain: bool = False,
        inside: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Put new overlays on disks, or take a snapshot inside them, at one instant, while the guest runs.

        After success each disk writes to its overlay, and the layer beneath holds the moment; inside, each
        image holds it under its name, and no chain has changed. After failure no node and no file of ours
        is left, and no image holds it. Cancelled before the transaction was sent, nothing is left; cancelled
        after it, the snapshot stands.

        Args:
            name: The moment's name.
            disks: Disks in any spelling; none: every writable disk with a medium.
            files: Where a disk's overlay goes; else beside the active layer, `STEM-of-base.NAME.qcow2`,
                or `STEM-of-base.DISK.NAME.qcow2` where two would be one.
            use_existing: Whether the files are there already; size, backing and format are checked.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            inside: Whether it is taken inside the active layers, which must be qcow2; without files.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            TargetExists: When an overlay's file is there already; inside, when a moment has the name.
            InvalidTarget: When it cannot be made there, or does not fit.
            Unsupported: Inside, when a disk is no qcow2 image, read-only or empty.
            Busy: When a job holds one of the chains.
            BadName: When the name is outside the grammar.
            NotFound, AmbiguousName: When a disk is not there, or its name fits two.
            CommandFailed: When QEMU refuses the transaction; nothing was changed.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: transaction, blockdev-snapshot-sync, blockdev-snapshot-internal-sync (block-core.json).
        """
        if not isinstance(files, Mapping | None):
            refuse("files", files, "give a mapping of disks to paths")
        paths = {disk: absolute("files", file) for disk, file in (files or {}).items()}
        taken = texts("disks", disks) or texts("files", tuple(paths))
        return await self._do(Snapshot(name, taken, paths, use_existing, plain, inside), hooks, wait=wait)

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

    # -- snapshots inside images, checkpoints, and the way back ----------------------------------

    async def delete(
        self, name: str, *, via: Via | None = None, wait: bool = False, hooks: Hooks | None = None
    ) -> Done:
        """Delete a moment: an internal one, from each disk that has it, or an external checkpoint.

        Of an external checkpoint the file of VM state and the name go; its layers stay, and a note says
        how they are folded.

        After success no active layer has a snapshot of that name. One disk comes after the other: after
        a failure `changed` says whether one was deleted, and to delete again takes those that are left.
        Cancelled before the first command was sent, nothing is changed; after it, the rest is done.

        Args:
            name: The moment's name, also one outside our grammar that somebody else chose.
            via: "hmp" or "jobs" forces a way. None: one of disks alone goes disk after disk; one with VM
                state through the human monitor when every writable disk has it, and else through a job.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            NotFound: When no moment has the name.
            AmbiguousName: When two have it.
            Unsupported: When it is an external one of disks alone, or the machine's state was saved and it
                did not run since.
            NotInChain: When it is inside an image below an active layer.
            Busy: When a job holds one of the chains.
            CommandFailed, JobFailed: When QEMU refuses.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: blockdev-snapshot-delete-internal-sync (block-core.json), snapshot-delete (migration.json).
        HMP: delvm.
        """
        return await self._do(Delete(name, via), hooks, wait=wait)

    async def checkpoint(
        self,
        name: str,
        *,
        mode: Mode = "stop",
        memory: str | os.PathLike[str] | None = None,
        leave: Sequence[str] = (),
        via: Via | None = None,
        wait: bool = False,
        plain: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Keep VM state in a file, and put overlays on every writable disk, all of one instant.

        With the mode "internal" all is kept inside the images, and no overlay is made.

        After success the layers beneath hold the disks, the file the memory, and both are listed as one
        moment. A guest that ran runs on; one that was paused stays so. After a failure no moment is listed
        and no file of ours is left, but overlays that were put on before it ("background" writes its memory
        after them) stay, for the guest writes to them: `.left` names each, with the commit that folds it.
        Cancelled, it is taken back in the same way; "in-place" is finished once the memory is being written.

        Args:
            name: The checkpoint's name.
            mode: "stop": the guest stands still while its memory is written; a new QEMU goes back to it.
                "background": it runs on meanwhile; a new QEMU goes back. "in-place": it stands still; any
                QEMU goes back, this one, too. "internal": all goes into the disks' own images.
            memory: Where the VM state goes, not with "internal"; None: beside the first disk's active layer.
            leave: With "internal" alone: writable disks that take no part, in any spelling.
            via: With "internal" alone: "hmp" or "jobs" forces a way. None: through the human monitor when
                every writable disk takes part, through a job when one is left out or has a throttle above it.
            wait: Whether to wait, without a limit, for jobs that are under way; see `when_idle`.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            hooks: What the caller wants to be told.

        Returns:
            The chains, the standstill by QEMU's own clock, and the bytes of VM state.

        Raises:
            BadName: When the name is outside the grammar.
            TargetExists: When a moment has the name, or a file that is to be made is there.
            InvalidTarget: When a file cannot be made, or there may be no room for the memory.
            Busy: When a job or a migration is running.
            Unsupported: When a disk, the machine's run state or this QEMU does not allow it.
            MigrationFailed: When QEMU cannot write the memory; `.error` is its text.
            JobFailed: When it cannot write it into the store.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: migrate (migration.json), snapshot-save, transaction, blockdev-snapshot-sync. HMP: savevm.
        """
        file = "" if memory is None else absolute("memory", memory)
        intent = Checkpoint(name, mode, file, plain, texts("leave", leave), via)
        return await self._do(intent, hooks, wait=wait)

    async def revert(
        self,
        name: str,
        *,
        leave: Sequence[str] = (),
        discard: bool = False,
        via: Via | None = None,
        into: Into = "in-place",
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Go back to a moment, of whichever kind it is.

        With `into` "new" this machine goes on, and overlays are made for a new QEMU to start from:
        `.prepared` has that of each disk, `.memory` the file that is to be loaded, or "". With "incoming"
        this QEMU, started `-S -incoming defer` on such overlays, gets the memory: after success the guest is
        as it was, and runs if it ran then; after a failure of the load QEMU has ended, and the overlays are
        as they were made. `reverted` does both. With "in-place" the machine itself goes back:

        After a checkpoint, in place or inside the images, memory and disks are as they were; after a moment
        of external disks alone the guest is reset (a QEMU that was started with -no-reboot ends by that). A
        guest that ran runs on, one that was paused stays so, after a reset in the state prelaunch.
        An external moment's disks write to new overlays on the layers that hold it, and what has been written
        to since is kept in the layers that are left aside; inside the images it is lost.
        After a failure before the memory was touched all is as it was. After any other the guest stands
        still, its disks are at the moment and its memory is not to be trusted: `changed` is YES. Cancelled
        once a disk was moved, or the load was sent, it is finished; before, nothing is changed.

        Args:
            name: The moment's name.
            leave: Writable disks, in any spelling, that stay as they are, beside a memory of another time.
            discard: Whether the layers that the guest wrote to until now are removed.
            via: How a checkpoint inside the images is loaded, see `checkpoint`.
            into: "in-place", "new" or "incoming"; `leave`, `discard` and `via` are for "in-place" alone.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told; `on_pivot` hears where each disk writes to.

        Raises:
            NotFound, AmbiguousName: When no moment has the name, or two have it.
            Unsupported: When its memory needs a new QEMU, or a disk's device or filter was not tried.
            NotInChain: When a writable disk is not in the moment, or a layer does not hold it any more.
            MachineDiffers: When the machine is not the one that it was; `.differences` names how.
            Busy: When a job or a migration is running.
            WouldLose: When a layer that is to be discarded holds internal snapshots.
            TargetExists, InvalidTarget: When an overlay or the VM state is not as it has to be.
            JobFailed, CommandFailed: When QEMU cannot load the memory; `changed` tells the two kinds of
                failure apart.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: blockdev-add, qom-set, blockdev-reopen, snapshot-load, system_reset, migrate-incoming.
        HMP: loadvm.
        """
        intent = Revert(name, texts("leave", leave), discard, via, into)
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
            Refused, TargetError, LinkLost: As `revert` and the launcher do.
        """
        if not callable(launcher):
            refuse("launcher", launcher, "give a function that starts QEMU from the files")
        plan = await self.plan(Revert(name, into="new"))
        try:
            made = await self._executor.run(plan)
        except anyio.get_cancelled_exc_class():  # they may be whole all the same
            await self._put_away(plan)
            raise
        active = {disk: Path(file) for disk, file in made.prepared.items()}
        loaded = False
        try:
            async with launcher(active) as vm:
                await vm.revert(name, into="incoming")
                loaded = True
                yield vm
        finally:
            if not loaded:
                await self._put_away(plan)

    async def _put_away(self, plan: Plan) -> None:
        with anyio.CancelScope(shield=True):
            await self._executor.put_away(plan)

    async def save(
        self,
        file: str | os.PathLike[str],
        *,
        plain: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Write VM state to a file; the guest stands still from then on, so that its disks fit it.

        After a failure, and cancelled while the memory is written, a guest that ran runs on and no file of
        ours is left. Cancelled once it is written, all is done: the file is there, and the guest stands.

        Args:
            file: Where it goes.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            TargetExists: When the file is there already.
            InvalidTarget: When it cannot be made there, or there may be no room.
            Busy: When a job or a migration is running.
            Unsupported: When the machine's state or the monitor does not allow it, or a layer is no file.
            MigrationFailed: When QEMU cannot write it; `.error` is its text.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: migrate (migration.json).
        """
        return await self._do(Save(absolute("file", file), plain), hooks, wait=wait)

    async def restore(
        self, file: str | os.PathLike[str], *, wait: bool = False, hooks: Hooks | None = None
    ) -> Done:
        """Read the VM state of `save` into this QEMU, started `-S -incoming defer` on the same layers.

        After success the guest is as it was, and runs if it ran then. After a failure of the load QEMU has
        ended, and the layers are as they were.

        Args:
            file: The file.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            Unsupported: When the machine does not wait for VM state.
            InvalidTarget: When the file is missing, cut, or none of ours.
            MachineDiffers: When the machine is another, or a layer has changed since; `.differences`.
            LinkLost: When QEMU ends, as it does when it cannot load the state.

        QAPI: migrate-incoming (migration.json).
        """
        return await self._do(Restore(absolute("file", file)), hooks, wait=wait)

    # -- the guest, and the monitor --------------------------------------------------------------

    async def cont(self, *, after_migration: bool = False) -> Status:
        """Let the guest run; return how it stands then. One that runs already runs on.

        A guest without room on its disk's file system may stand again at once (`io-error`).

        Args:
            after_migration: Whether it may run here although its state was saved or sent away. A state that
                was saved does not fit its disks any more then.

        Raises:
            Busy: When a migration is running, or an operation of ours that lets the guest run itself,
                or has left it standing: `.job_id`.
            Unsupported: When the run state is one in which a wreck would run, or none: after a load that
                failed, before VM state has come in, after a migration, before a reset that is due.
            CommandFailed: When QEMU refuses, for a file that another process has open for instance.
            LinkLost: When the link goes before the reply.

        QAPI: cont (misc.json).
        """
        await self.check_cont(after_migration=after_migration)
        await self._target.session.change("cont")
        return await self.status()

    async def stop(self) -> Status:
        """Pause the guest; return how it stands then. One that does not run stays as it is.

        Raises:
            Busy: When an operation of ours is running that would let it run on.
            CommandFailed: When QEMU refuses.
            LinkLost: When the link goes before the reply.

        QAPI: stop (misc.json).
        """
        await self.check_stop()
        await self._target.session.change("stop")
        return await self.status()

    async def check_cont(self, *, after_migration: bool = False) -> None:
        """Raise what `cont` would refuse with; nothing is sent that changes anything."""
        check("after_migration", after_migration, bool)
        status, records = await asyncio.gather(self.status(), self.jobs.interrupted(live=True))
        refuse_cont(status, records, after_migration=after_migration)

    async def check_stop(self) -> None:
        """Raise what `stop` would refuse with; nothing is sent that changes anything."""
        refuse_stop(await self.jobs.interrupted(live=True))

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send any QMP command as it is; return what QEMU returns.

        It is sent at once, also while an operation is running, and nothing is checked before or after:
        of our promises only those of the link hold. What it changes nobody undoes, no record tells of it,
        and an operation whose chains it has moved ends in GraphMismatch. Cancelled before it is sent,
        nothing is sent; later its reply is awaited for at most 30 s. `query-...` commands change nothing,
        and are given up at once.

        With `human-monitor-command` the human monitor's answer is a text. Its errors are texts, too: no
        exception tells of them.

        Args:
            command: Its name, as in "block_resize".
            arguments: Its arguments; None: none.

        Raises:
            CommandFailed: When QEMU answers with an error; `changed` is NO.
            TargetError: When a `query-...` command is not answered within the session's reply limit.
            LinkLost: When the link goes before the answer.
            Malformed: When the answer is not QMP.

        QAPI: any command.
        """
        check("command", command, Text)
        _check_arguments(arguments)
        if command.startswith(_ASKS):
            return await self._target.session.query(command, arguments)
        return await self._target.session.change(command, arguments)


def _check_arguments(arguments: object) -> None:
    """Refuse what JSON, and so QMP, has no word for."""
    if not isinstance(arguments, Mapping | None):
        refuse("arguments", arguments, "give a mapping of names to values")
    for name in arguments or ():
        check("arguments", name, Text)
    try:
        json.dumps(dict(arguments or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        refuse("arguments", arguments, f"JSON cannot say that: {error}")
