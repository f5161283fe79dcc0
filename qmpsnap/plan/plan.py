"""A plan: stages of steps, the chain before and after, and what stays true if it fails."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Chains, Graph, draw
from qmpsnap.model.picture.html import image, text
from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.printable import printable
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Stage, Step, start_of
from qmpsnap.plan.commands.records import record_of
from qmpsnap.plan.effect import apply_all
from qmpsnap.plan.intent import Intent
from qmpsnap.plan.picture import picture_of_change

OperationEnd = Literal["finished", "rolled-back", "partial", "unknown", "cancelled"]
"""How an operation has ended, or with a plan will have.

"cancelled": as asked for. The others are ends of an operation that was interrupted: "rolled-back", all is as
it was before; "partial", a part of it stays; "unknown", nothing shows how far it came.
"""

NOTHING_TO_DELETE = "nothing to delete"
_SAVES = frozenset({"migrate", "snapshot-save", "savevm"})


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be done, in full, before anything is.

    Attributes:
        op: "snapshot", "snapshot-internal", "delete", "checkpoint", "checkpoint-internal", "revert",
            "revert-prepare", "revert-internal", "store", "save", "restore", "stream", "commit" or "mirror".
        intent: What was asked for; None when an interrupted operation is resumed.
        disks: Names of the disks that the plan touches.
        stages: In order; one without steps is left out.
        before: Graph that the plan was made on.
        after: Graph as predicted, from the steps if there is an intent; None if it is not known.
        expect: Chains that an earlier run's record predicts, where `after` is None.
        began: Chains before an earlier run began, by its record; empty where `before` has them.
        moves: Disks whose root moves to another file.
        folded: Files whose data is copied into another layer and that leave the chain.
        invalid: Files that no longer hold their moment once it is done, under their later names.
        invalid_if_stopped: Files that no longer hold their moment when it fails or is cancelled.
        notes: What the caller should know.
        resumes: Steps that an earlier run had done, to be rolled back if this one fails or is stopped.
        run_state: The run state that the plan was made in, if it depends on that; else "".
        state_bytes: Bytes of the VM state that is loaded, where they are known beforehand.
        prepared: Overlays for another QEMU to start from, by disk.
        nodes: Of those with an encrypted layer, the options that open them; see `Start.nodes`.
        memory: The file of VM state that it is to load, or "".
        repeats: What removes the records of earlier operations that say no more than this one's, which stays
            when it fails.
        deleted: Names of the snapshots that are deleted.
        finishes: Id of the interrupted operation that it finishes or rolls back, or "".
        takes_over: The records of that operation, one for each directory; locked meanwhile.
        ended: How an operation that was interrupted ends by it.
        vanished: Why the operation cannot be called a success although nothing is left to do, or "".
        then: Plans that run after this one, each with its own job and record, made for the chains that the
            plan before predicts. They are not one transaction: after a failure the earlier ones stay done.
    """

    op: str
    intent: Intent | None
    disks: tuple[str, ...]
    stages: tuple[Stage, ...]
    before: Graph
    after: Graph | None = None
    expect: Mapping[str, tuple[str, ...]] = field(default_factory=Frozen)
    began: Mapping[str, tuple[str, ...]] = field(default_factory=Frozen)
    moves: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    invalid_if_stopped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    resumes: tuple[Step, ...] = ()
    run_state: str = ""
    state_bytes: int = 0
    prepared: Mapping[str, str] = field(default_factory=Frozen)
    nodes: Mapping[str, Mapping[str, object]] = field(default_factory=Frozen)
    memory: str = ""
    deleted: tuple[str, ...] = ()
    finishes: str = ""
    takes_over: tuple[IntentRecord, ...] = ()
    ended: OperationEnd = "finished"
    vanished: str = ""
    repeats: tuple[Step, ...] = ()
    then: tuple[Plan, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(stage for stage in self.stages if stage.steps))
        if self.after is None and self.intent is not None:
            object.__setattr__(self, "after", apply_all(self.before, self.steps))

    @property
    def parts(self) -> tuple[Plan, ...]:
        """This plan and the plans that run after it, in order."""
        return (self, *self.then)

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order, without those of `then`."""
        return tuple(step for stage in self.stages for step in stage.steps)

    @property
    def start(self) -> Step | None:
        """The step that starts the plan's job on a chain, or None."""
        return start_of(self.steps)

    @property
    def jobs(self) -> tuple[Step, ...]:
        """The steps that start its jobs on chains, and those of `then`."""
        return tuple(part.start for part in self.parts if part.start is not None)

    @property
    def job_id(self) -> str:
        """Id of the plan's job, or ""."""
        return next((step.job_id for step in self.steps if step.job_id), "")

    @property
    def operation_id(self) -> str:
        """Id of the operation, by which it can be finished if its client goes away; or ""."""
        return self.finishes or self.job_id or (self.record.id if self.record is not None else "")

    @property
    def can_be_left(self) -> bool:
        """Whether its job copies layers while the guest runs; one on VM state cannot be left."""
        steps = (*self.steps, *self.resumes)
        waits = any(step.command == "await-job" for step in self.steps)
        return waits and not any(step.on_state for step in steps)

    @property
    def halts(self) -> bool:
        """Whether it pauses a guest that it alone resumes."""
        steps = (*self.steps, *self.resumes)
        return any(sent.command == "cont" for step in steps for sent in (step, *step.undo))

    @property
    def on_guest(self) -> bool:
        """Whether it depends on the guest's run state, or changes that or the guest's memory."""
        steps = (*self.steps, *self.resumes)
        return (
            self.halts
            or self.moves_memory
            or bool(self.run_state)
            or any(step.pauses or step.loads for step in steps)
        )

    @property
    def moves_memory(self) -> bool:
        """Whether a migration writes VM state to a file, or reads it."""
        return any(step.command in {"migrate", "migrate-incoming"} for step in self.steps)

    @property
    def excludes_jobs(self) -> bool:
        """Whether VM state is saved, or disks or memory become those of another time: no job may run."""
        return any(step.loads or step.kind in _SAVES or step.command in _SAVES for step in self.steps)

    @property
    def record(self) -> IntentRecord | None:
        """What is recorded before anything happens, or None."""
        return next((record for step in self.steps if (record := record_of(step))), None)

    @property
    def chains_before(self) -> Chains:
        """Files of the disks' chains, active first, before."""
        return self.before.chains(*self.disks)

    @property
    def chains_after(self) -> Chains:
        """Files of the disks' chains, active first, as predicted; a disk may be missing."""
        return self.after.chains(*self.disks) if self.after is not None else dict(self.expect)

    @property
    def headers(self) -> dict[str, str]:
        """Each file of the host whose backing file changes, with the new one; "": none."""
        before = self.began or self.chains_before
        known = {pair for files in before.values() for pair in itertools.pairwise((*files, ""))}
        return {
            file: below
            for files in self.chains_after.values()
            for file, below in itertools.pairwise((*files, ""))
            if (file, below) not in known and file.startswith("/") and (not below or below.startswith("/"))
        }

    @property
    def copies_made(self) -> tuple[str, ...]:
        """Files of the host that a mirror copies to."""
        started = [step.copy.file for step in self.steps if step.copy is not None]
        adopted = [record.target for step in self.resumes if (record := record_of(step))]
        return tuple(file for file in dict.fromkeys((*started, *adopted)) if file.startswith("/"))

    def picture(self) -> Picture:
        """The chains before and after, with those of `then`."""
        last = self.parts[-1]
        return picture_of_change(
            self._all_before,
            self._all_after,
            graph_before=self.before,
            graph_after=last.after,
            invalid=[file for part in self.parts for file in part.invalid],
            prepared=self.prepared,
        )

    def _repr_svg_(self) -> str:
        return self.picture().render("svg")

    def _repr_html_(self) -> str:
        return image(self.picture()) + text(str(self))

    @property
    def _all_before(self) -> Chains:
        return {disk: files for part in reversed(self.parts) for disk, files in part.chains_before.items()}

    @property
    def _all_after(self) -> Chains:
        return {disk: files for part in self.parts for disk, files in part.chains_after.items()}

    def to_json(self) -> dict[str, object]:
        """The plan as `-n --json` prints it."""
        return {
            "steps": [step.to_json() for part in self.parts for step in part.steps],
            "before": {disk: list(files) for disk, files in self._all_before.items()},
            "after": {disk: list(files) for disk, files in self._all_after.items()},
            "invalid": [file for part in self.parts for file in part.invalid],
            "deleted": [name for part in self.parts for name in part.deleted],
            "notes": [note for part in self.parts for note in part.notes],
        }

    def __str__(self) -> str:
        """The plan as `-n` prints it, one line for each step."""
        lines: list[str] = []
        number = 0
        for part in self.parts:
            if part.steps or part is self:
                lines += _chain_lines(part)
            for stage in part.stages:
                lines.append(f"{stage.title}:")
                for step in stage.steps:
                    number += 1
                    lines.append(f"  {number}. {_line(step)}")
            lines += [f"deletes {', '.join(part.deleted)}"] if part.deleted else []
            lines += [f"afterwards invalid: {file}" for file in part.invalid]
            lines += [f"note: {note}" for note in part.notes]
        if not number and self.op == "prune":
            lines.insert(0, NOTHING_TO_DELETE)
        return "\n".join(map(printable, lines))  # a name in it makes no line of its own


def _chain_lines(plan: Plan) -> list[str]:
    """The chain of each disk, before and after."""
    lines = []
    for disk in plan.disks:
        lines.append(f"{disk}: {draw(plan.chains_before[disk])}")
        if disk in plan.prepared:
            lines.append(f"{'':{len(disk)}}  stays; afterwards, start from {plan.prepared[disk]}")
        elif disk in plan.chains_after:
            lines.append(f"{'':{len(disk)}}  becomes {draw(plan.chains_after[disk])}")
    return lines


def _line(step: Step) -> str:
    arguments = json.dumps(step.arguments, ensure_ascii=False)
    if step.on == "qmp":
        return f'-> {{"execute": "{step.command}", "arguments": {arguments}}}'
    return f"{'..' if step.on == 'wait' else '**'} {step.command} {arguments}"
