"""One machine, as embedders use it: a method for each operation.

Each verb is exactly `run(await plan(intent))`.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from functools import partial

from qmpsnap.backup import BackedUp, Backups
from qmpsnap.errors import ConnectFailed
from qmpsnap.fork import Children, fork
from qmpsnap.helper import choose_launcher, source_of
from qmpsnap.jobs import Jobs
from qmpsnap.model.arguments import AtLeastOne, NewName, Speed, Text, check, refuse, texts
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.finding import Finding
from qmpsnap.model.graph import Graph
from qmpsnap.model.machine import Status
from qmpsnap.model.moments import Moments
from qmpsnap.model.pause import Pause
from qmpsnap.model.picture.live import picture_of_machine
from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.qapi_schema import Schema, parse_schema
from qmpsnap.model.start import Start
from qmpsnap.model.view import DiskView
from qmpsnap.pauses import why_paused
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Ending,
    Folded,
    Format,
    Intent,
    Into,
    Mirror,
    Mode,
    OnError,
    Prune,
    Restore,
    Revert,
    Save,
    Snapshot,
    Stream,
    Sync,
    Via,
)
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.view import only
from qmpsnap.plan.vmstate.guest import refuse_cont, refuse_stop
from qmpsnap.reverting import reverted_in_new
from qmpsnap.run.both import both
from qmpsnap.run.examination import diagnose
from qmpsnap.run.executor import Executor
from qmpsnap.run.idle import Idle
from qmpsnap.run.outcome import Done, Hooks, check_hooks
from qmpsnap.run.paths import absolute, absolute_each
from qmpsnap.run.planning import Planning, check_intent
from qmpsnap.run.session import Event
from qmpsnap.run.target import Target, guest_of
from qmpsnap.run.view import View, open_view
from qmpsnap.store import has_memory, make_store, with_store
from qmpsnap.template import Template
from qmpsnap.template_making import freeze, template_of
from qmpsnap.waking import check_wake, woken
from qmpsnap.watching import Overview, watching


class VM:
    """One machine.

    Methods that change something read the graph, plan, run, and read the graph again. Operations on disks
    that have nothing in common run side by side. Two operations on the same disk do not. An operation that
    saves the guest's memory, deletes a snapshot or reverts needs the whole machine. A call waits for a short
    operation that is in its way. If a stream, a commit or a mirror is in its way, the call raises Busy, or
    waits with `wait=True`. A cancelled call awaits the reply to what was sent, and then rolls back or
    finishes, as its docstring says. That takes at most 30 s, and the next call on the same VM works.

    Arguments are checked before anything is sent: a wrong word, type, path or number is a `BadArgument`,
    which is also a ValueError. These have the same meaning in every method:

    - `wait`: whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
    - `hooks`: what the caller wants to be told.
    - `plain`: whether encrypted data may be written unencrypted; else it is encrypted again, or refused.
    - `speed`: limit in bytes/s; 0: none.
    - `on_error`: "report" fails the job, "stop" pauses it, "ignore" retries.
    - `via`: "hmp" uses the human monitor (savevm), "jobs" QEMU's jobs (snapshot-save). None: the human
      monitor if every writable disk takes part, jobs if one is left out or throttled; disks alone need
      neither.

    Any of them raises LinkLost when the connection is lost, with what is known in `changed`, and
    CommandFailed when QEMU answers with an error.

    Attributes:
        name: What the machine is called in logs.
        pid: QEMU's process if it is known, else None.
        jobs: Its jobs, and operations that an earlier client left unfinished.
        launcher: Starts another QEMU of this machine; None: methods that need another QEMU need a `launcher`.
    """

    def __init__(self, target: Target, *, state_dir: str = "", launcher: Launcher | None = None) -> None:
        self.name = target.name
        self.launcher = launcher
        self._target = target
        self._executor = Executor(target)
        self._planning = Planning(target, state_dir)
        self._idle = Idle(target, self._executor, self._planning)
        self.jobs = Jobs(target, self._executor, self._planning)
        self._backups = Backups(self._executor, self._planning, self.jobs)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._target.about}>"

    @property
    def pid(self) -> int | None:
        """QEMU's process if it is known, else None."""
        return self._target.pid

    def records_in(self, directory: str | os.PathLike[str]) -> None:
        """Write records to this directory from now on, unless the machine was opened with a `state_dir`.

        Those of a clone are in its private directory; beside the base image they would outlive the clone.
        """
        self._planning.records_in(absolute("directory", directory))

    # -- see ---------------------------------------------------------------------------------------

    async def graph(self) -> Graph:
        """Return every disk with its chain, and every node, as QEMU has them now.

        Raises:
            TargetError: When QEMU does not answer within the session's reply limit.

        QAPI: query-block, query-blockstats, query-named-block-nodes (block-core.json).
        """
        return await self._planning.graph()

    async def picture(self, disks: Sequence[str] = ()) -> Picture:
        """Draw the disks as they are now, with filters, jobs, and layers that a commit wrote into.

        Args:
            disks: The disks to show, by any of their names; none: all, and the jobs whose disk is not known.

        Raises:
            BadArgument: When `disks` is not a sequence of names.
            NotFound, AmbiguousName: When a name is that of no disk, or of several.
            TargetError: When QEMU does not answer within the session's reply limit.

        QAPI: as for `graph()` and `jobs.places()`.
        """
        names = texts("disks", disks)
        graph = await self.graph()
        chosen = [find_disk(graph, disk).name for disk in names]
        jobs = await self.jobs.list()
        places = await self.jobs.places(graph) if jobs else {}
        records = await self.jobs.interrupted(graph, live=True)
        invalid = [file for record in records for file in record.invalid]
        return picture_of_machine(graph, jobs, places, invalid=invalid, disks=chosen)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the files that the machine was started from, one line each; also in each result.

        A guest that writes into a backing file of other images corrupts them. That happens when the machine
        was started from an old file after a snapshot. It is checked when the graph is first read (before that
        this is empty), and logged once, as "machine.started_below".
        """
        return self._planning.warnings

    def events(self, sink: Callable[[Event], None]) -> AbstractContextManager[None]:
        """Call `sink` with each of QEMU's events inside the block; nothing is queued."""
        if not callable(sink):
            refuse("sink", sink, "give a function that takes an event")
        return self._target.events(sink)

    def watch(self, *, interval: float = 1.0) -> AbstractAsyncContextManager[AsyncIterator[Overview]]:
        """Follow the machine inside the block: an `Overview` now, and another whenever something has changed.

        QEMU is queried after each of its events, every `interval` seconds while a job or a migration runs,
        and otherwise every 5 s. The graph is read more rarely if that takes long, and not while VM state is
        being moved.

        Raises:
            LinkLost: From the iterator, when the connection is lost.

        QAPI: query-status, query-migrate, query-jobs, query-block-jobs, and those of `graph`.
        """
        return watching(self._target, self._planning, self.jobs, interval=interval)

    async def wait_lost(self) -> str:
        """Return once the connection to QEMU is lost, with the reason."""
        return await self._target.wait_lost()

    async def reconnect(self) -> None:
        """Connect again after the connection was lost; jobs that ended meanwhile are then known.

        Raises:
            ConnectFailed: When QEMU has ended, or the socket was given to us.
        """
        if not await self._target.relink():
            raise ConnectFailed(
                f"{self.name} cannot be reached any more", hint="check whether QEMU is still running"
            )

    async def moments(self) -> Moments:
        """Return every snapshot of the disks, external and internal, and the tree of their images.

        External ones are known from our records, which lie beside the images: where QEMU's files are not
        visible, `records_seen` is False and only internal ones are listed. The tree needs no record: it is
        read from QEMU, and from the headers of all images in the directories of the layers.

        QAPI: query-named-block-nodes, SnapshotInfo (block-core.json).
        """
        return await self._planning.moments()

    async def diagnose(self, *, agent: str | os.PathLike[str] | None = None) -> tuple[Finding, ...]:
        """Return each trouble of the machine or its images, with its cause and the command that mends it.

        Nothing is changed. A running machine is read twice, 0.2 s apart, so that an operation of another
        client that is in progress is not reported. With the machine off, a chain that cannot be read is a
        finding, not an error.

        Args:
            agent: Socket of the guest's agent, which is asked whether the guest is frozen; None: it is not.

        Returns:
            The findings, the most urgent first. The last ones have the `severity` "limit" and are no trouble.

        QAPI: query-block and others (block-core.json), query-jobs (job.json), query-status (run-state.json).
        """
        place = "" if agent is None else absolute("agent", agent)
        return await diagnose(self._target, self._planning, agent=place)

    async def status(self) -> Status:
        """Return whether the guest is running, and its run state.

        Raises:
            Unsupported: When there is no guest.
            TargetError: When QEMU does not answer within the session's reply limit.

        QAPI: query-status (run-state.json), query-migrate (migration.json).
        """
        return await guest_of(self._target).status()

    async def why_paused(self, graph: Graph | None = None) -> Pause | None:
        """Return why the guest is not running, and what lets it run; None while it is running.

        Args:
            graph: The graph, if it has just been read: its disks' files are then named. None: it is read if
                an I/O error has paused the guest.

        Raises:
            Unsupported: When there is no guest.

        QAPI: query-status (run-state.json), query-migrate (migration.json), query-block (block-core.json).
        """
        return await why_paused(self._target, self.jobs, graph)

    @asynccontextmanager
    async def open(
        self, name: str, *, disk: str | None = None, fuse: str | os.PathLike[str] | None = None
    ) -> AsyncIterator[View]:
        """Read a disk as it was at a snapshot of any kind, while the guest keeps running.

        Until the end of the block a child process serves the disk over NBD, on a unix socket that other users
        cannot reach. Nothing that changes the machine is sent to it. The layers are locked meanwhile: QEMU
        refuses a commit into one of them, and the chain is unchanged. After a failure or cancel nothing is
        left.

        Args:
            name: The snapshot's name.
            disk: The disk in any spelling; None: the only disk of the snapshot.
            fuse: Directory in which the disk is also available as a file, `DISK.raw`; None: no such file.

        Yields:
            The view, with the addresses `.uri`, `.socket` and `.file`.

        Raises:
            NotFound, AmbiguousName: When no snapshot has the name, or several have it; when the snapshot
                includes several disks, and none was named.
            NotInChain: When no layer holds it any more.
            Busy: When a layer is being written to.
            FileMoved: When a layer's name does not lead to the file that QEMU has open.
            Unsupported: When a layer is encrypted or not a file, the images are not visible from here, or
                QEMU's tools are not installed, or cannot use FUSE.
            TargetExists, InvalidTarget: When the file for FUSE exists, or cannot be created.
            ConnectFailed: When the layers cannot be opened.
            GraphMismatch: At the end of the block, when a snapshot inside an image was deleted meanwhile.
        """
        check("disk", disk, Text | None)
        place = None if fuse is None else absolute("fuse", fuse)
        view = only(await self.views(name, disks=() if disk is None else (disk,)))
        async with open_view(view, fuse=place) as opened:
            yield opened

    async def views(self, name: str, *, disks: Sequence[str] = ()) -> tuple[DiskView, ...]:
        """Return how to read disks as they were at a snapshot, for `open_view`, which needs no connection.

        Args:
            name: The snapshot's name.
            disks: Disks in any spelling; none: every disk of the snapshot.

        Raises:
            Refused: As `open`.
        """
        check("name", name, Text)
        return await self._planning.views(name, texts("disks", disks))

    # -- plan and run ----------------------------------------------------------------------------

    async def plan(self, intent: Intent) -> Plan:
        """Return what would be done, to the last argument; nothing that changes anything is sent.

        Raises:
            Refused: One of its subclasses, when it cannot or must not be done.
        """
        return await self._planning.plan(intent)

    async def when_idle(self, intent: Intent) -> Plan:
        """Plan as soon as no job of any client is in the way.

        Waits for one job after the other, without a limit, and plans again; nothing is sent. For a job that
        does not end by itself it waits some seconds at most: a job at READY or pending whose client is gone
        or idle, or a paused job.

        Args:
            intent: What is wanted.

        Raises:
            Busy: When such a job is in the way, with the command that makes it continue in the hint; or when
                something that is not a job is.
            Refused: As `plan`.
        """
        return await self._idle.plan(partial(self._planning.plan, intent))

    async def run(self, plan: Plan, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Run a plan; see `Executor.run` for what it raises and what a cancelled run leaves.

        The intent is planned again first: whatever has come up in between (a migration, a job, a layer that
        was moved or replaced, an image backed by what would change) is refused before anything is sent.

        Raises:
            Refused: When the planner would refuse by now; nothing was sent.
        """
        if not isinstance(plan, Plan):
            refuse("plan", plan, "give a plan that plan() returned")
        check_hooks(hooks)
        check("wait", wait, bool)
        if plan.finishes:
            return await self.jobs.finish(plan, hooks)
        return await self._executor.run(plan, hooks, check=self._planning.check, wait=wait)

    async def do(self, intent: Intent, hooks: Hooks | None = None, *, wait: bool = False) -> Done:
        """Plan an intent, and run the plan at once; `plan` and then `run` would plan twice.

        Raises:
            Refused: As `plan`.
        """
        check_intent(intent)
        check_hooks(hooks)
        check("wait", wait, bool)
        make, when = partial(self._planning.plan, intent), self._idle.plan if wait else None
        return await self._executor.do(make, hooks, check=self._planning.check, when=when, wait=wait)

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
        """Put new overlays on disks, or take a snapshot inside them, all at one instant, on a running guest.

        After success each disk writes to its overlay, and the layer beneath holds the snapshot. With `inside`
        each image holds it under its name, and no chain has changed. After a failure no node and no file of
        ours is left, and no image holds it. A call that is cancelled before the transaction is sent leaves
        nothing; one that is cancelled later completes the snapshot.

        Args:
            name: The snapshot's name.
            disks: Disks in any spelling; none: every writable disk with a medium.
            files: Path of a disk's overlay; default: beside the active layer, `STEM-of-base.NAME.qcow2`, or
                `STEM-of-base.DISK.NAME.qcow2` where two would be the same.
            use_existing: Whether the files exist; their size, backing file and format are checked.
            plain, wait, hooks: See `VM`.
            inside: Whether it is taken inside the active layers, which must be qcow2; without files.

        Raises:
            TargetExists: When an overlay's file exists; with `inside`, when a snapshot has the name.
            InvalidTarget: When it cannot be created there, or does not fit.
            Unsupported: With `inside`, when a disk is not a qcow2 image, or is read-only or empty.
            Busy: When a job holds one of the chains.
            BadName: When the name is outside the grammar.
            NotFound, AmbiguousName: When there is no such disk, or more than one.

        QAPI: transaction, blockdev-snapshot(-sync), blockdev-snapshot-internal-sync (block-core.json).
        """
        if not isinstance(files, Mapping | None):
            refuse("files", files, "give a mapping of disks to paths")
        paths = {disk: absolute("files", file) for disk, file in (files or {}).items()}
        taken = texts("disks", disks) or texts("files", tuple(paths))
        return await self.do(Snapshot(name, taken, paths, use_existing, plain, inside), hooks, wait=wait)

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
        """Copy backing data up into a layer, so that the layers in between are no longer needed.

        After success the layers in between are still valid files. After a failure or a cancellation the chain
        is unchanged; what was copied stays in the layer, which reads the same.

        Args:
            disk: The disk in any spelling.
            base: Layer that stays below (excluded from the copy); None: no layer stays.
            into: Layer that receives the data; None: the active layer.
            on_error, speed, plain, wait, hooks: See `VM`.

        Raises:
            NotInChain: When a layer is not in the chain, or `base` is not below `into`.
            Busy: When a job holds the chain.
            JobFailed: When QEMU ends the job with an error; `.error` is its text.
            JobPaused: When an I/O error paused the job.

        QAPI: block-stream (block-core.json).
        """
        return await self.do(Stream(disk, base, into, on_error, speed, plain), hooks, wait=wait)

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
        """Merge the layers from top down to just above base into base.

        On success the chain no longer holds them; their files are renamed to FILE.invalid, because they no
        longer hold their snapshots. After a failure, or a cancellation before the pivot, the guest's data is
        unchanged and no job is left. But the base is invalid, and so is every layer that reads through it:
        `.invalid` names them.

        Args:
            disk: The disk in any spelling.
            top: Newest layer to merge (included); None: the active layer, which ends in a pivot.
            base: Layer that receives the data and stays, below `top`; None: the base image.
            keep_overlay: With the active layer as top: end at READY, the chain unchanged.
            look_in: More directories to search for images backed by what changes.
            invalidate: Images backed by what changes that may become invalid.
            folded: What happens to the files of the merged layers: "rename" to FILE.invalid, "remove", or
                "keep".
            discard_internal: Whether internal snapshots and persistent bitmaps may be lost.
            on_error, speed, plain, wait, hooks: See `VM`.

        Raises:
            NotInChain: When a layer is not in the chain, or `base` is not below `top`.
            Busy: When a job holds the chain.
            StillNeeded: When another image is backed by what would change; `.by` names each.
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
        return await self.do(intent, hooks, wait=wait)

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
        """Copy a disk elsewhere while the guest writes; then pivot to the copy, or leave it there.

        After a pivot the disk writes to the copy. After "finish" the copy holds the disk as of the end of the
        call. After a failure, or a cancellation before the pivot, the chain is unchanged, and a target that
        we created is removed.

        Args:
            disk: The disk in any spelling.
            target: Path of the copy.
            ending: "pivot" or "finish".
            sync: "full", "top" (the active layer alone) or "none" (new writes only, pivot only).
            format: "raw" or "qcow2"; None: that of the active layer, qcow2 if that is encrypted.
            use_existing: Whether the target exists; its size, backing file and format are checked.
            discard_internal: Whether internal snapshots and persistent bitmaps may be left behind.
            on_error, speed, plain, wait, hooks: See `VM`.

        Raises:
            TargetExists: When the target exists.
            InvalidTarget: When it cannot be created there, or does not fit.
            Busy: When a job holds the chain.
            WouldLose: When the pivot would leave internal snapshots or persistent bitmaps behind.
            JobFailed: When QEMU ends the job with an error; `.error` is its text.
            JobPaused: When an I/O error paused the job.

        QAPI: drive-mirror, blockdev-mirror, job-complete, block-job-cancel (block-core.json, job.json).
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
        return await self.do(intent, hooks, wait=wait)

    async def backup(
        self,
        directory: str | os.PathLike[str],
        *,
        disks: Sequence[str] = (),
        speed: int = 0,
        hooks: Hooks | None = None,
    ) -> BackedUp:
        """Copy disks as of one instant into standalone images, while the guest keeps running.

        A snapshot is taken, the layers beneath it are copied, each copy is compared with them, and the
        overlays are merged back. The backup gets its name in the directory once it is complete and synced.

        After success the chains are as before. After a failure or a cancel the overlays are merged back,
        within 30 s; `.left` names those that could not be merged back. A backup that is not complete is
        removed. If our process or QEMU was killed, the next backup merges the overlays back first; with the
        machine off, open the overlays for that.

        Args:
            directory: The directory of backups; created if it does not exist.
            disks: Disks in any spelling; none: every writable disk with a medium.
            speed: Limit of the copies in bytes/s; 0: none.
            hooks: See `VM`; called with the progress of the copies, and with each root that moves.

        Raises:
            InvalidTarget: When there is too little space, or the directory cannot be written.
            Busy: When a job holds one of the chains, or another backup is running.
            Unsupported: When a layer is encrypted or not a file, or the images are not visible from here.
            CommandFailed: When a disk cannot be copied, or its copy differs.
            Interrupted: When the hooks ask to stop before the copies are complete, or the merges then take
                longer than 30 s.
            StillNeeded: When other images are backed by an active layer.
            Incomplete: When other images have been based on an active layer meanwhile, so that an overlay
                stays.
            Refused, TargetError: As `snapshot` and `commit`. If merging back fails, the backup is complete,
                and the hint names its directory.

        QAPI: transaction, blockdev-snapshot-sync, block-commit (block-core.json).
        """
        place = absolute("directory", directory)
        named = texts("disks", disks)
        check("speed", speed, Speed)
        check_hooks(hooks)
        return await self._backups.run(place, named, speed=speed, hooks=hooks or Hooks())

    async def plan_backup(self, directory: str | os.PathLike[str], *, disks: Sequence[str] = ()) -> Plan:
        """Plan the snapshot that `backup` takes first, with notes on what follows; nothing is changed.

        Args:
            directory, disks: As `backup`.

        Raises:
            Refused: As `backup`.
        """
        place = absolute("directory", directory)
        return await self._backups.plan(place, texts("disks", disks))

    # -- delete, checkpoints, reverts ------------------------------------------------------------

    async def delete(
        self,
        name: str,
        *,
        via: Via | None = None,
        keep_files: bool = False,
        look_in: Sequence[str | os.PathLike[str]] = (),
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Delete a snapshot or checkpoint, and keep every other one.

        An internal snapshot is deleted from each disk that has it. For an external snapshot, on each disk,
        the overlay that began at it is committed into the layer beneath, or that layer is streamed into the
        overlay, whichever is possible and copies less. If anything else is based on that layer, only the name
        is deleted. The VM state of a checkpoint is removed with it. A file that nothing needs any more is
        removed; base images stay.

        After success there is no snapshot of that name, and every other one reads the same bytes as before.
        The disks are done in turn: after a failure `changed` says whether any disk was done, and the same
        deletion again does the others. A cancel before a job's point of no return undoes that job; after that
        point the job is finished. A commit that was stopped has written only into the layer that held the
        deleted snapshot.

        Args:
            name: The snapshot's name; may be one outside our grammar.
            via: How an internal snapshot is deleted; see `VM`.
            keep_files: Whether files stay that nothing needs any more.
            look_in: More directories to search for images based on the snapshot's layers; the directories of
                the chains are always searched.
            wait, hooks: See `VM`.

        Returns:
            The chains of its disks; `active` if a root moved; `notes` on each layer.

        Raises:
            NotFound: When no snapshot has the name.
            AmbiguousName: When several have it.
            Unsupported: When the machine's state was saved and the guest has not run since.
            NotInChain: When it is inside an image below an active layer.
            Busy: When a job holds one of the chains.
            InvalidTarget: When it cannot be determined what else is based on a layer.
            JobFailed: When QEMU ends the job with an error.
            Incomplete: When it failed or was refused after one of several disks was done.

        QAPI: block-commit, block-stream, blockdev-snapshot-delete-internal-sync (block-core.json),
        snapshot-delete (migration.json).

        HMP: delvm.
        """
        intent = Delete(name, via, keep_files, absolute_each("look_in", look_in))
        return await self.do(intent, hooks, wait=wait)

    async def prune(
        self,
        *,
        keep_last: int | None = None,
        max_depth: int | None = None,
        disks: Iterable[str] = (),
        keep_files: bool = False,
        look_in: Sequence[str | os.PathLike[str]] = (),
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Delete external snapshots and checkpoints until few remain, or until the chains are short.

        Each run of layers without a remaining snapshot between them is merged into the layer that has the
        most data, so that as few bytes as possible are copied. `max_depth` deletes the snapshots that cost
        least. Everything else is as with `delete`: layers stay if something else is based on them.

        Args:
            keep_last: How many snapshots to keep, the newest; or None.
            max_depth: How many layers a chain may have; or None. Give one of the two.
            disks: Disks, in any spelling, whose snapshots and chains count; empty: all.
            keep_files, look_in, wait, hooks: As in `delete`.

        Returns:
            As `delete`; `changed` is False if there was nothing to do.

        Raises:
            BadArgument: When not exactly one of `keep_last` and `max_depth` is given, or it is below 1.
            NotFound, AmbiguousName: When a disk does not exist, or a spelling matches two.
            Busy, InvalidTarget, JobFailed, Incomplete: As in `delete`.

        QAPI: block-commit, block-stream (block-core.json).
        """
        places = absolute_each("look_in", look_in)
        intent = Prune(keep_last, max_depth, texts("disks", disks), keep_files, places)
        return await self.do(intent, hooks, wait=wait)

    async def checkpoint(
        self,
        name: str,
        *,
        mode: Mode = "stop",
        memory: str | os.PathLike[str] | None = None,
        leave: Sequence[str] = (),
        via: Via | None = None,
        launcher: Launcher | None = None,
        wait: bool = False,
        plain: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Save VM state to a file, and put overlays on every writable disk, all as of one instant.

        With the mode "internal" everything is saved inside the images, and no overlay is made.

        After success the layers beneath hold the disks, the file holds the memory, and both are listed as one
        snapshot. A running guest keeps running, a paused one stays paused. After a failure nothing is listed
        and no file of ours is left, except for overlays that were put on before the failure ("background"
        writes its memory after them). These stay, because the guest writes to them, and `.left` names each,
        with the commit that merges it.

        A cancelled checkpoint is rolled back in the same way, with two exceptions. "in-place" is finished
        once its memory is being written. "background" is finished once its overlays are there, if QEMU cannot
        stop the migration (7.2); a later QEMU stops it, and the overlays stay, which the log and the notes of
        the CancelledError name. If the call is cancelled while the store is made, the checkpoint is complete,
        and reverts in a new QEMU.

        Args:
            name: The checkpoint's name.
            mode: "stop": the guest is paused while its memory is written; to revert takes a new QEMU.
                "background": the guest keeps running meanwhile; with a launcher a store is made at once, as
                by `make_store`, and any QEMU can revert, including this one. Without a launcher, or if that
                fails, to revert takes a new QEMU, and `.notes` says why. "in-place": the guest is paused; any
                QEMU can revert. "internal": all goes into the disks' own images.
            memory: File for the VM state, not with "internal"; None: beside the first disk's active layer.
            leave: With "internal" alone: writable disks to leave out, in any spelling.
            via: With "internal" alone; see `VM`, as for `wait`, `plain`, `hooks`.
            launcher: Only for "background": starts another QEMU of this machine, as for `reverted`; None:
                `self.launcher`, if there is one.

        Returns:
            The chains, the standstill by QEMU's own clock, and the bytes of VM state.

        Raises:
            BadName: When the name is outside the grammar.
            TargetExists: When a snapshot has the name, or a file that would be created exists.
            InvalidTarget: When a file cannot be created, or there may be no room for the memory.
            Busy: When a job or a migration is running.
            Unsupported: When a disk, the machine's run state or this QEMU does not allow it.
            MigrationFailed: When QEMU cannot write the memory; `.error` is its text.
            JobFailed: When it cannot write it into the store.

        QAPI: migrate (migration.json), snapshot-save, transaction, blockdev-snapshot-sync. HMP: savevm.
        """
        file = "" if memory is None else absolute("memory", memory)
        if launcher is not None and mode != "background":
            refuse("launcher", launcher, f"it is only for the mode 'background', not for {mode!r}")
        start = choose_launcher(launcher, self.launcher) if launcher is not None else self.launcher
        store = mode == "background" and start is not None
        intent = Checkpoint(name, mode, file, plain, texts("leave", leave), via, store)
        done = await self.do(intent, hooks, wait=wait)
        return await with_store(self, done, name, start, hooks) if mode == "background" else done

    async def make_store(
        self, name: str, *, launcher: Launcher | None = None, hooks: Hooks | None = None
    ) -> Done:
        """Write the memory of a checkpoint into a store, so that this QEMU, too, can revert to it.

        It is for checkpoints of the modes "background" and "stop", which then have the mode "in-place"; the
        memory file is removed. A second QEMU, the helper, writes the store; it has temporary overlays, and
        its guest never runs. This machine is not changed: its guest keeps running, or stays paused.

        After a failure the checkpoint is as before, and no file is left. The same holds if the call is
        cancelled before the helper begins to write the store. After that the store is finished. If our
        process is killed, the checkpoint is as before, or has its store; the next call removes what is left.

        Args:
            name: The checkpoint's name.
            launcher: Starts another QEMU of this machine, as for `reverted`. None: `self.launcher`.
            hooks: See `VM`.

        Raises:
            NotFound, AmbiguousName: When no snapshot has the name, or several have it; when it was
                deleted meanwhile.
            Unsupported: When it has no memory, or is inside the images.
            NotInChain: When a layer no longer holds it.
            TargetExists: When it has a store, or the store's file exists.
            InvalidTarget: When the store cannot be created, or there may be no room for it; when the memory
                file is missing, incomplete, or another's.
            MachineDiffers: When the launcher starts another machine; `.differences` names how.
            JobFailed: When the helper cannot write the store.
            ConnectFailed: When the helper ends before the store is complete.

        QAPI: blockdev-add, snapshot-save, sent to the helper (block-core.json, migration.json).
        """
        start = choose_launcher(launcher, self.launcher)
        check_hooks(hooks)
        return await make_store(self, name, start, hooks)

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
        wake: Wake | None = None,
    ) -> Done:
        """Revert to a snapshot of any kind.

        - `into` "in-place" reverts this machine. After reverting to a checkpoint (in place or internal)
          memory and disks are as they were; after reverting to an external snapshot of disks alone the guest
          is reset (a QEMU started with -no-reboot ends). A guest that ran runs again, as does one that a
          failed load has paused. Any other paused guest stays paused; after a reset its run state is
          prelaunch.
        - `into` "new" leaves this machine running, and creates overlays for a new QEMU to start from:
          `.prepared` has the overlay of each disk, `.memory` the file to load, or "".
        - `into` "incoming" loads the memory into this QEMU, which was started on such overlays with `-S
          -incoming defer`, or with `-S` alone if the memory is in a store ("in-place"). After success the
          guest is as it was, and runs if it ran then. After a failed load QEMU has ended, or its guest is
          paused, and the overlays are unchanged. `reverted` does this and the step before.

        With the machine off (`offline`), "in-place" does for an external snapshot the same as "new". For an
        internal snapshot the images themselves are reverted, all or none of them, and no memory is loaded.

        In place, the disks of an external snapshot write to new overlays on the layers that hold it, and the
        previous overlays keep what was written since. With an internal snapshot that is lost. After a failure
        before the memory was touched everything is as before. After any other failure the guest is paused,
        its disks are reverted and its memory cannot be trusted: `changed` is YES. A call that is cancelled
        before the first disk is moved and before the load is sent changes nothing; one that is cancelled
        later finishes the revert.

        Args:
            name: The snapshot's name.
            leave: Writable disks, in any spelling, that are not reverted, although the memory is.
            discard: Whether the layers that the guest has written to until now are removed.
            via: How an internal checkpoint is loaded; see `VM`, as for `wait` and `hooks`.
            into: See above; `leave`, `discard` and `via` are for "in-place" alone.
            wake: Called once the guest runs again with the checkpoint's memory, to correct its clock and
                random seed, which are those of the checkpoint, too. Not called if the guest stays paused, or
                boots.

        Raises:
            NotFound, AmbiguousName: When no snapshot has the name, or several have it.
            Unsupported: When its memory needs a new QEMU, or a disk has a device or a filter with which
                reverts in place were not tested.
            NotInChain: When a writable disk is not part of the snapshot, or a layer no longer holds it.
            MachineDiffers: When the machine is not the one that it was; `.differences` names how.
            Busy: When a job or a migration is running.
            WouldLose: When a layer to be discarded holds internal snapshots.
            TargetExists, InvalidTarget: When an overlay cannot be created, or the VM state file is not
                usable.
            JobFailed, CommandFailed: When QEMU cannot load the memory; `changed` says whether the disks were
                reverted.
            Incomplete: When `wake` fails; the revert is done.

        QAPI: blockdev-add, qom-set, blockdev-reopen, snapshot-load, system_reset, migrate-incoming.

        HMP: loadvm.
        """
        check_wake(wake)
        done = await self.do(Revert(name, texts("leave", leave), discard, via, into), hooks, wait=wait)
        if wake is not None and into != "new" and await has_memory(self, name):
            await woken(self, wake, what=f"the revert to {name!r}")
        return done

    @asynccontextmanager
    async def reverted(
        self, name: str, launcher: Launcher | None = None, *, wake: Wake | None = None
    ) -> AsyncIterator[VM]:
        """Revert to a checkpoint in a new QEMU, which exists inside the block.

        This one keeps running; if the two must not run side by side, `launcher` has to end it. If the new one
        cannot be started or cannot load the memory, the overlays that were created for it are removed.

        Args:
            name: The checkpoint's name.
            launcher: Starts another QEMU of this machine from a `Start`:
                `lambda start: qmpsnap.launch([..., *start.arguments])`. None: `self.launcher`.
            wake: As for `revert`; called with the new machine.

        Yields:
            The new machine, its guest as it was at the checkpoint.

        Raises:
            Refused, TargetError: As `revert` and the launcher do.
            Incomplete: When `wake` fails; the new QEMU has ended, and its overlays stay.
        """
        check_wake(wake)
        start = choose_launcher(launcher, self.launcher)
        async with reverted_in_new(self, self._executor, name, start, wake=wake) as vm:
            yield vm

    async def freeze_template(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str | None = None,
        of: str | None = None,
        launcher: Launcher | None = None,
    ) -> Template[VM]:
        """Make a template of the guest as it is now, or was at a checkpoint; clones start from it.

        First a checkpoint is taken in the mode that pauses the guest for the shortest time; a running guest
        runs on, a paused one stays paused. Then its memory is written to a file that all clones share, and a
        helper QEMU loads its devices and writes their state. The checkpoint stays, and can be reverted to.

        The template is made under another name, synced, and renamed. Beside each layer of the disks lies an
        empty image that is based on it, so that a commit or a deletion finds that it is still needed. After a
        failure or a cancellation the template is removed, and a checkpoint that was taken, also in part, is
        deleted again. If that is not possible, the error names it in `.left`; a cancellation then becomes an
        `Interrupted`.

        Args:
            directory: The directory, which must not exist. It needs room for the guest's memory; on a tmpfs
                clones start faster.
            name: Name of the checkpoint and of the template; None: that of the directory.
            of: Name of an existing checkpoint, of which the template is made; None: a checkpoint is taken.
            launcher: Starts the helper QEMU, and later the clones; None: `self.launcher`.

        Raises:
            BadName: When the name is outside the grammar.
            TargetExists: When the directory exists, or a snapshot has the name.
            InvalidTarget: When the directory cannot be created, or there is too little space.
            NotFound: When no checkpoint is called `of`.
            Unsupported: When the guest's memory cannot be saved, is inside the images, is in the objects of
                NUMA nodes, or was extended by plugged devices; when a layer is encrypted or not a file; when
                the machine is the child of a fork, unless each disk was moved by `mirror` to a file that
                stays.
            MachineDiffers: When the launcher starts another machine; `.differences` names how.
            Refused, TargetError: As `checkpoint` and the launcher do.
        """
        place = absolute("directory", directory)
        start = choose_launcher(launcher, self.launcher)
        check("of", of, Text | None)
        if of is not None:
            if name is not None:
                refuse("name", name, "the template has that of the checkpoint")
            return await template_of(await source_of(self, of), place, start)
        called = os.path.basename(place) if name is None else name  # noqa: PTH119
        check("name", called, NewName)
        return await freeze(self, place, called, start)

    @asynccontextmanager
    async def fork(
        self,
        count: int,
        *,
        of: str | None = None,
        launcher: Launcher | None = None,
        directory: str | os.PathLike[str] | None = None,
        wake: Wake | None = None,
    ) -> AsyncIterator[Children[VM]]:
        """Start machines whose guests go on from the present state of this one, or from a checkpoint.

        This machine is paused for the standstill of a checkpoint, then keeps running; a paused one stays
        paused. The children share the memory that they do not change, and each has its own overlays. The
        iterator yields each child as soon as it runs. A child that cannot be started has an error instead;
        the others run.

        At the end of the block all children end, and everything that was made for them is removed. The
        overlays that this machine's disks got are merged back, so that they write to the same files as before
        the fork. Where that is not possible, for instance because the machine has ended, the checkpoint
        stays; its name begins with `fork-`. All this is also done after a failure or a cancellation, even
        while the checkpoint is taken. If the checkpoint then stays, the error's `.left` names it; a
        cancellation becomes an `Interrupted` that does.

        Args:
            count: How many, 1 or more.
            of: An existing checkpoint; None: one is taken.
            launcher: Starts each child, and a helper QEMU; None: that of this machine.
            directory: Directory for the temporary files, with room for the guest's memory; a tmpfs is faster.
                The checkpoint's own memory is then beside the first disk's active layer. None: the system's
                directory for temporary files, and for both memories /dev/shm, if the host has room for them.
            wake: Called with each child once its guest runs, because its clock and its random seed are those
                of the parent. If it raises an error, the child ends, and its error is an Incomplete.

        Yields:
            The children: `async for child in children`, each with `child.vm`, which raises its error.

        Raises:
            NotFound: When no checkpoint is called `of`.
            InvalidTarget: When there is too little space, or this process cannot open enough files: 64, and 8
                for each child.
            Unsupported: As for `freeze_template`, and when there is no guest.
            Refused, TargetError: As `checkpoint` and the launcher do, before the first child.
            Incomplete: At the end of the block, when the checkpoint stays and the block has raised nothing;
                it names the files that the machine is to be started from.
        """
        start = choose_launcher(launcher, self.launcher)
        check("count", count, AtLeastOne)
        check("of", of, Text | None)
        check_wake(wake)
        place = "" if directory is None else absolute("directory", directory)
        guest_of(self._target)
        async with fork(self, count, start, of=of or "", directory=place, wake=wake) as children:
            yield children

    async def save(
        self,
        file: str | os.PathLike[str],
        *,
        plain: bool = False,
        wait: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Save VM state to a file; the guest stays paused, so that its disks keep matching it.

        After a failure, or a cancellation while the memory is written, a running guest keeps running and no
        file of ours is left. A call that is cancelled later is completed: the file exists, and the guest is
        paused.

        Args:
            file: The file to create.
            plain, wait, hooks: See `VM`.

        Raises:
            TargetExists: When the file exists.
            InvalidTarget: When it cannot be created there, or there may be no room.
            Busy: When a job or a migration is running.
            Unsupported: When the machine's state or the monitor does not allow it, or a layer is not a file.
            MigrationFailed: When QEMU cannot write it; `.error` is its text.

        QAPI: migrate (migration.json).
        """
        return await self.do(Save(absolute("file", file), plain), hooks, wait=wait)

    async def restore(
        self, file: str | os.PathLike[str], *, wait: bool = False, hooks: Hooks | None = None
    ) -> Done:
        """Load VM state from a file of `save`; this QEMU was started with `-S -incoming defer` on its layers.

        After success the guest is as it was, and runs if it ran then. After a failed load QEMU has ended, and
        the layers are unchanged.

        Args:
            file: The file.
            wait, hooks: See `VM`.

        Raises:
            Unsupported: When the machine is not waiting for VM state.
            InvalidTarget: When the file is missing, truncated, or not one of ours.
            MachineDiffers: When it is another machine, or a layer has changed since; `.differences`.
            LinkLost: When QEMU ends, as it does when it cannot load the state.

        QAPI: migrate-incoming (migration.json).
        """
        return await self.do(Restore(absolute("file", file)), hooks, wait=wait)

    # -- the guest, and the monitor --------------------------------------------------------------

    async def cont(self, *, after_migration: bool = False) -> Status:
        """Resume the guest; return its run state after that. A running guest keeps running.

        A guest whose disk's host file system is full may be paused again at once (`io-error`).

        Args:
            after_migration: Whether it may run here although its state was saved or migrated away. A saved
                state no longer matches the disks then.

        Raises:
            Busy: When a migration is running, or an operation of ours that resumes the guest itself or has
                left it paused: `.job_id`.
            Unsupported: When the guest could not run, or would be corrupt: after a failed load, before VM
                state has arrived, after a migration, or when a reset is needed first; or there is no guest.
            CommandFailed: When QEMU refuses, for example because another process has a file open.

        QAPI: cont (misc.json).
        """
        await self.check_cont(after_migration=after_migration)
        await self._target.execute("cont")
        return await self.status()

    async def stop(self) -> Status:
        """Pause the guest; return its run state after that. A guest that is not running stays as it is.

        Raises:
            Busy: When an operation of ours is running that would resume it.
            Unsupported: When there is no guest.

        QAPI: stop (misc.json).
        """
        await self.check_stop()
        await self._target.execute("stop")
        return await self.status()

    async def check_cont(self, *, after_migration: bool = False) -> None:
        """Raise what `cont` would raise; nothing that changes anything is sent."""
        check("after_migration", after_migration, bool)
        guest = guest_of(self._target)
        status, records = await both(guest.status, partial(self.jobs.interrupted, live=True))
        refuse_cont(status, records, after_migration=after_migration)

    async def check_stop(self) -> None:
        """Raise what `stop` would raise; nothing that changes anything is sent."""
        guest_of(self._target)
        refuse_stop(await self.jobs.interrupted(live=True))

    async def schema(self) -> Schema:
        """The commands that QEMU has, with their arguments, its events, and their types.

        Raises:
            TargetError: When QEMU does not answer within the session's reply limit.
            Malformed: When the answer is not a schema.

        QAPI: query-qmp-schema (introspect.json).
        """
        return parse_schema(await self._target.execute("query-qmp-schema"))

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        """Send any QMP command as it is; return what QEMU returns.

        It is sent at once, even during an operation, and nothing is checked before or after. What it changes
        is neither recorded nor rolled back, and an operation whose chains it has changed ends in
        GraphMismatch. If the call is cancelled before the command is sent, it is not sent; after that its
        reply is awaited for at most 30 s. `query-...` commands change nothing, and are not awaited.

        With `human-monitor-command` QEMU returns the human monitor's answer as text. Its errors are text,
        too: no exception is raised for them.

        Args:
            command: Its name, as in "block_resize".
            arguments: Its arguments; None: none.

        Raises:
            CommandFailed: When QEMU answers with an error; `changed` is NO.
            TargetError: When a `query-...` command is not answered within the session's reply limit.
            Malformed: When the answer is not QMP.

        QAPI: any command.
        """
        check("command", command, Text)
        _check_arguments(arguments)
        return await self._target.execute(command, arguments)


Launcher = Callable[[Start], AbstractAsyncContextManager[VM]]
"""Starts another QEMU of a machine, as the `Start` says; the QEMU ends with the block.

It has to end with our process, too, also if that is killed, as the QEMUs of `launch` do: one that survives
keeps the layers open, and nothing can be merged into them meanwhile.
"""

Wake = Callable[[VM], Awaitable[None]]
"""Corrects clock, random seed and the like of a guest that runs again with the memory of a checkpoint."""


def _check_arguments(arguments: object) -> None:
    """Refuse what JSON, and so QMP, cannot express."""
    if not isinstance(arguments, Mapping | None):
        refuse("arguments", arguments, "give a mapping of names to values")
    for name in arguments or ():
        check("arguments", name, Text)
    try:
        json.dumps(dict(arguments or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        refuse("arguments", arguments, f"JSON cannot say that: {error}")
