"""Before a plan: asks the machine and its files what the planner has to know, and no more than that."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, Refused, StillNeeded, TargetExists
from qmpsnap.model.arguments import refuse
from qmpsnap.model.backup import RunningBackup
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.interrupted import LeftBehind, is_of_fork, left_behind
from qmpsnap.model.job import Job
from qmpsnap.model.machine import Machine
from qmpsnap.model.moments import Moments, find_moments, state_places
from qmpsnap.model.record import IntentRecord, Record
from qmpsnap.model.tree_growth import Growth, ask_around, with_sizes
from qmpsnap.model.view import DiskView
from qmpsnap.model.wrong_start import WrongStart
from qmpsnap.plan import backup as plan_backup
from qmpsnap.plan import ownership, planner, resume, resume_fork
from qmpsnap.plan import view as plan_view
from qmpsnap.plan.checks.backups import ask_backups, running_backups
from qmpsnap.plan.checks.images import refuse_below
from qmpsnap.plan.inside.loadable import ask_left
from qmpsnap.plan.intent import Checkpoint, Delete, Intent, Prune, Save
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.run.both import both
from qmpsnap.run.disk import in_thread
from qmpsnap.run.outcome import same
from qmpsnap.run.start_check import StartCheck
from qmpsnap.run.target import Target, guest_of
from qmpsnap.run.view_lock import reader


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """One look at a machine.

    Attributes:
        graph: The graph.
        moments: The moments that its disks hold.
        records: The records that were found, with those of other machines in the same directories.
        files: What was read of the files of the chains, and beside them.
        below: Disks that write into a backing file of other images.
    """

    graph: Graph
    moments: Moments
    records: tuple[Record, ...]
    files: Files
    below: tuple[WrongStart, ...]


class Planning:
    """Plans for one machine; it changes nothing.

    Args:
        target: The machine.
        state_dir: Where records go when the caller says so, else "".
    """

    def __init__(self, target: Target, state_dir: str) -> None:
        self._target = target
        self._state_dir = state_dir
        self._started = StartCheck(target, state_dir)

    def on(self, target: Target) -> Planning:
        """The same for another target, which has its records in the same place."""
        return Planning(target, self._state_dir)

    def records_in(self, directory: str) -> None:
        """Keep records in this directory, unless the caller has named another one."""
        if not self._state_dir:
            self._state_dir = directory
            self._started = StartCheck(self._target, directory)

    @property
    def _off(self) -> bool:
        """Whether the images are open without a machine that runs on them."""
        return self._target.guest is None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong with the files that the machine was started from, as far as was looked."""
        return self._started.found

    async def graph(self) -> Graph:
        """Every disk with its chain, and every node, as QEMU has them now."""
        graph = await self._target.graph()
        await self._started.warnings(graph)
        return graph

    async def moments(self) -> Moments:
        """Every moment that the disks hold, as of now, and the tree of their images."""
        return (await self.seen()).moments

    async def seen(self) -> Seen:
        """The graph, its moments, and the records, all as of now."""
        graph = await self._target.graph()
        ask = resume.ask(graph, state_dir=self._state_dir) | ask_around(graph)
        ask = replace(ask, states=state_places(graph))
        files, *started = await self._target.look_each((ask, *self._started.ask(graph)), graph)
        await self._started.warnings(graph, *started)
        growth, more = Growth(graph, files.records, files), files
        further = growth.ask() | ask_left(graph, files, growth.own)
        if further.records:
            further = replace(further, records=(*ask.records, *further.records))
        if further != Ask():
            more = await self._target.look(further, graph)
            seen = replace(
                files,
                files=Frozen({**files.files, **more.files}),
                images=Frozen({**files.images, **more.images}),
            )
            growth = Growth(graph, more.records if further.records else files.records, seen)
        moments = find_moments(
            graph,
            more.records if further.records else files.records,
            own=growth.own,
            records_seen=files.shared,
            states=files.states,
            memories=more.memories,
            # What was read before the records: an operation may have begun since.
            files=replace(
                files,
                files=Frozen({**more.files, **files.files}),
                images=Frozen({**more.images, **files.images}),
                records=more.records if further.records else files.records,
            ),
        )
        tree = growth.tree(moments.moments)
        moments = replace(
            moments,
            moments=with_sizes(moments.moments, tree),
            tree=tree,
            unreadable=tuple(dict.fromkeys((*files.unreadable, *more.unreadable))),
        )
        return Seen(graph, moments, files.records, files, self._started.started_below(graph))

    async def views(self, name: str, disks: Sequence[str] = ()) -> tuple[DiskView, ...]:
        """How each of the disks is read as it was at a moment; see `plan.view.views` for what it refuses."""
        return plan_view.views(name, disks, await self._reading(name))

    async def coverable(self, plan: Plan) -> tuple[Disk, ...]:
        """The disks of a snapshot's plan that was made just now; see `plan.backup` for what it refuses."""
        files = await self._target.look(plan_backup.ask(plan.disks, plan.before), plan.before)
        if files.shared:
            plan_backup.refuse_unlisted(plan)
        jobs, features = await self._target.jobs(after_graph=True), await self._target.features()
        scene = self._scene(plan.before, files, jobs, features, None)
        return plan_backup.coverable(plan.disks, scene)

    def refuse_below(self, disks: Sequence[str], graph: Graph) -> None:
        """Refuse to write to older layers of a machine that is off.

        An overlay on such a layer could not be merged back into it: other images are backed by it.

        Args:
            disks: Disks in any spelling; none: all of them.
            graph: The graph as it was last read.

        Raises:
            StillNeeded: When the active layer of a disk is the backing file of other images.
        """
        if self._off:
            names = {find_disk(graph, disk).name for disk in disks} or set(graph.disks)
            refuse_below("backup", names, self._started.started_below(graph))

    async def _reading(self, name: str) -> Scene:
        """What has to be known to read a moment of that name."""
        graph = await self._target.graph()
        files = await self._target.look(plan_view.ask(graph, state_dir=self._state_dir), graph)
        question = plan_view.ask_again(name, graph, files, state_dir=self._state_dir)
        files = await self._target.look(question, graph)
        jobs, features = await self._target.jobs(), await self._target.features()
        return self._scene(graph, files, jobs, features, None)

    async def plan(self, intent: Intent) -> Plan:
        """What would be done; see `VM.plan`. What is no intent is refused before anything is asked."""
        check_intent(intent)
        if planner.works_on(intent, off=self._off) == "disks":
            # Asked along with the graph, and answered while the files are looked at.
            (scene, warnings), _ = await both(partial(self._look, intent), self._target.refuse_migrated)
        else:
            scene, warnings = await self._look(intent)
        plan = planner.plan(intent, scene, off=self._off)
        if self._off:
            refuse_below(intent.kind, plan.disks, self._started.started_below(scene.graph))
        return dataclasses.replace(plan, notes=(*warnings, *plan.notes))

    async def _look(self, intent: Intent) -> tuple[Scene, tuple[str, ...]]:
        """What the planner has to know, and what is wrong with the machine's own files."""
        graph, jobs = await self._target.graph_with_jobs()
        features = await self._target.features()
        files = partial(self._files, intent, graph)
        if planner.works_on(intent, off=self._off) == "guest":
            saves = isinstance(intent, Checkpoint | Save)
            machine = partial(guest_of(self._target).machine, graph, occupied=saves)
            (found, warnings), guest = await both(files, machine)
            return self._scene(graph, found, jobs, features, guest), warnings
        found, warnings = await files()
        return self._scene(graph, found, jobs, features, None), warnings

    async def check(self, plan: Plan) -> Graph | None:
        """Refuse a plan that the planner would refuse now; return the graph if it was read.

        A deletion is not refused when an image is based on a layer by now: only the name would go. So it has
        to be the same as it was.

        Files that are in the way and directories that are full are found by the steps, which are rolled back.
        Changed chains and run states are found by the operation: they are a GraphMismatch.
        """
        if plan.intent is None:
            return None
        try:
            now = await self.plan(plan.intent)
            _refuse_other_jobs(plan, now)
        except (TargetExists, InvalidTarget):
            return None
        except Refused:
            graph = await self._target.graph()
            if same(plan, graph) and (
                not plan.run_state or plan.run_state == await guest_of(self._target).run_state()
            ):
                raise
            return graph
        return now.before

    async def _files(self, intent: Intent, graph: Graph) -> tuple[Files, tuple[str, ...]]:
        """What the planner asks about the file system, and what is wrong with the machine's own files."""
        question = planner.ask(intent, graph, state_dir=self._state_dir, off=self._off)
        files, *started = await self._target.look_each((question, *self._started.ask(graph)), graph)
        more = planner.ask_again(intent, graph, files, state_dir=self._state_dir, off=self._off)
        if more is not None:
            files = await self._target.look(more, graph)
        return files, await self._started.warnings(graph, *started)

    def _scene(
        self,
        graph: Graph,
        files: Files,
        jobs: tuple[Job, ...],
        features: Features,
        machine: Machine | None,
    ) -> Scene:
        facts = graph, files, jobs, features, _now(), self._state_dir
        return Scene(*facts) if machine is None else GuestScene(*facts, machine=machine)

    async def resume(self, job_id: str) -> Plan:
        """What is left of an operation whose client went away; see `Jobs.plan`.

        QEMU may carry it on meanwhile. So its job is looked at with the graph, before the run state: a job
        that is running then is waited for, and what a job that has ended has left is all there. Its files are
        looked at last: a migration that had ended has written to its file.
        """
        graph, jobs = await self._target.graph_with_jobs()
        files = await self._target.look(resume.ask(graph, state_dir=self._state_dir), graph)
        records = tuple(
            record for record in files.records if isinstance(record, IntentRecord) and record.id == job_id
        )
        question = resume.ask(graph, records=records, state_dir=self._state_dir)
        if forked := is_of_fork(job_id):
            question |= resume_fork.ask(job_id, graph, files)
        on_guest = any(record.origin for record in records) or (forked and not self._off)
        machine = await guest_of(self._target).machine(graph) if on_guest else None
        files = await self._target.look(question, graph)
        features = await self._target.features()
        return resume.plan(job_id, self._scene(graph, files, jobs, features, machine))

    async def interrupted(self, graph: Graph | None, *, live: bool) -> tuple[IntentRecord, ...]:
        """Records of operations whose client went away; see `Jobs.interrupted`."""
        graph = graph or await self._target.graph()
        files = await self._target.look(resume.ask(graph, state_dir=self._state_dir), graph)
        records = await self.unfinished(graph, files.records, live=live)
        return records if live else (*records, *await self.forks_left(graph, files.records))

    async def forks_left(self, graph: Graph, found: Sequence[Record]) -> tuple[IntentRecord, ...]:
        """Forks of this machine whose clients are gone, and whose checkpoints are among the records."""
        forks = resume_fork.checkpoints(graph, found)
        if not forks:
            return ()
        files = await self._target.look(resume_fork.ask_live(forks), graph)
        if not files.shared:  # then no lock is seen
            return ()
        return tuple(resume_fork.operation(each) for each in forks if not resume_fork.is_live(each, files))

    async def left_behind(self, graph: Graph | None) -> tuple[LeftBehind, ...]:
        """What killed processes have left beside the layers of the chains; see `Jobs.left_behind`."""
        graph = graph or await self._target.graph()
        layers = [file for disk in graph.disks.values() for file in disk.files if file.startswith("/")]
        ask = Ask(files=tuple(layers), survey=tuple(map(posixpath.dirname, layers)))
        files = await self._target.look(ask, graph)
        ours = {files.real(layer) for layer in layers}
        keepers = {file: keeper for file, keeper in files.keepers.items() if keeper.layer in ours}
        if not any(keeper.state == "left" for keeper in keepers.values()):
            return ()
        return left_behind(keepers, await self.interrupted(graph, live=False))

    async def backups(self, graph: Graph | None) -> tuple[RunningBackup, ...]:
        """The backups of the machine that clients are making; see `Jobs.backups`."""
        graph = graph or await self._target.graph()
        files = await self._target.look(ask_backups(graph), graph)
        found: list[RunningBackup] = []
        for moment, layers in running_backups(graph, files).items():
            holder = await in_thread(partial(reader, next(iter(layers.values())), moment))
            found.append(RunningBackup(moment, tuple(layers), holder.process))
        return tuple(found)

    async def unfinished(
        self, graph: Graph, found: Sequence[Record], *, live: bool = False
    ) -> tuple[IntentRecord, ...]:
        """Those of the records that are of operations on this machine, as `interrupted`."""
        # A record that lies in two places is one.
        records = {record.id: record for record in found if isinstance(record, IntentRecord)}.values()
        ours = {record.id for record in records if ownership.stands_here(record, graph, found)}
        process = ""
        if len(ours) < len(records):
            ours |= {job.id for job in await self._target.jobs()}
            if any(record.origin and record.origin.process for record in records if record.id not in ours):
                process = self._target.process
        return tuple(
            record
            for record in records
            if (record.id in ours or ownership.ran_here(record, process)) and (live or not record.live)
        )


def _refuse_other_jobs(plan: Plan, now: Plan) -> None:
    """Refuse a deletion that would be another one by now."""
    if isinstance(plan.intent, Delete | Prune) and now.jobs != plan.jobs:
        notes = "; ".join(note for part in now.parts for note in part.notes)
        raise StillNeeded(
            f"the layers can no longer go as planned: {notes}",
            by=(),
            hint="make a new plan",
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def check_intent(intent: object) -> None:
    """Refuse what is no intent.

    Raises:
        BadArgument: When it is none.
    """
    if not isinstance(intent, Intent):
        refuse("intent", intent, "give an intent, as qmpsnap.Snapshot(...)")
