"""What an operation reports: to its hooks while it runs, and its result."""

from __future__ import annotations

import inspect
import posixpath
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qmpsnap.errors import Changed, GraphMismatch, Incomplete, JobFailed, QmpsnapError, Refused, TargetError
from qmpsnap.model.arguments import number, refuse
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Chains, Disk, Graph, Layer, draw
from qmpsnap.model.header import backing_path
from qmpsnap.model.hints import frees
from qmpsnap.model.names import is_kept_inside
from qmpsnap.model.picture.html import image, table
from qmpsnap.model.picture.picture import Picture
from qmpsnap.model.step import DropNode, Inside, Step
from qmpsnap.plan.effect import overlays
from qmpsnap.plan.picture import picture_of_chains
from qmpsnap.plan.plan import OperationEnd, Plan
from qmpsnap.run.target import Progress

if TYPE_CHECKING:
    import anyio


_SEALS = frozenset({"seal-memory", "seal-store"})


@dataclass(frozen=True, slots=True)
class Done:
    """The result of an operation, as read back after it.

    Attributes:
        op: As in Plan: "snapshot", "checkpoint", "revert", "save", "commit" and so on.
        chains: Files of each touched disk's chain, active first.
        active: The new active file of each disk whose root moved: start the machine from it.
        standstill_s: Seconds in which the guest's I/O stood still: the snapshot's transaction, a
            checkpoint or a revert from STOP to RESUME by QEMU's own clock (0 when the guest was paused),
            or a pivot from QEMU's own event times (pending to concluded). It leaves out what the guest
            itself waits for. None where nothing was drained that we could measure, and while it is paused.
        elapsed_s: Seconds of the whole operation.
        bytes: Bytes that the job copied, as QEMU counts them; of a checkpoint, and of a revert to one,
            bytes of its VM state as read back.
        left: Unused nodes of others, each as the command that frees it.
        invalid: Files that no longer hold their moment, under their present names.
        notes: What the caller should know.
        job_id: Id that the job had, or "".
        prepared: Overlays for another QEMU to start from, by disk.
        memory: The file of VM state that it is to load, or "".
        deleted: Names of the snapshots that were deleted.
        changed: Whether the machine or its layers are other than before the operation.
        ended: How it has ended; other than "finished" only of one that was interrupted or cancelled.
    """

    op: str
    chains: Chains
    active: Mapping[str, str] = field(default_factory=Frozen)
    standstill_s: float | None = None
    elapsed_s: float = 0.0
    bytes: int = 0
    left: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    job_id: str = ""
    changed: bool = True
    prepared: Mapping[str, str] = field(default_factory=Frozen)
    memory: str = ""
    deleted: tuple[str, ...] = ()
    ended: OperationEnd = "finished"

    def picture(self) -> Picture:
        """The chains of the touched disks."""
        return picture_of_chains(self.chains, invalid=self.invalid)

    def _repr_svg_(self) -> str:
        return self.picture().render("svg")

    def _repr_html_(self) -> str:
        facts = {
            name: value
            for name, value in self.to_json().items()
            if name != "chains" and value not in (None, "", [], {})
        }
        return table(("", ""), [(name, str(value)) for name, value in facts.items()]) + image(self.picture())

    def to_json(self) -> dict[str, object]:
        """The result as `--json` prints it."""
        return {
            "op": self.op,
            "changed": self.changed,
            "ended": self.ended,
            "chains": {disk: list(files) for disk, files in self.chains.items()},
            "active": dict(self.active),
            "standstill_s": self.standstill_s,
            "elapsed_s": self.elapsed_s,
            "bytes": self.bytes,
            "left": list(self.left),
            "invalid": list(self.invalid),
            "deleted": list(self.deleted),
            "notes": list(self.notes),
            **({"prepared": dict(self.prepared), "memory": self.memory} if self.prepared else {}),
        }


@dataclass(frozen=True, slots=True)
class Hooks:
    """Callbacks that follow an operation, and events by which the caller leaves it.

    Attributes:
        progress: Called with each look at the job's progress; asks QEMU while the job runs.
        interval: Seconds between two looks.
        on_pivot: Called with the new active file of each disk, once the root has moved.
        detach: Set by the caller to leave the job running; the call raises Detached.
        cancel: Set by the caller to stop; the call raises Interrupted once all is undone.
        before: Called with each step just before it is done, but for those that put away what is left; the
            step waits for it, and so does a guest that is paused by then.
    """

    progress: Callable[[Progress], Awaitable[None] | None] | None = None
    interval: float = 1.0
    on_pivot: Callable[[Mapping[str, str]], Awaitable[None] | None] | None = None
    detach: anyio.Event | None = None
    cancel: anyio.Event | None = None
    before: Callable[[Step], Awaitable[None] | None] | None = None

    def __post_init__(self) -> None:
        number("interval", self.interval, zero=True)

    async def tell(self, progress: Progress) -> None:
        """Report the progress."""
        if self.progress is not None and inspect.isawaitable(call := self.progress(progress)):
            await call

    async def tell_step(self, step: Step) -> None:
        """Report a step that is about to be done."""
        if self.before is not None and inspect.isawaitable(call := self.before(step)):
            await call

    async def tell_pivot(self, active: Mapping[str, str]) -> None:
        """Report where each disk's root is now."""
        if self.on_pivot is not None and inspect.isawaitable(call := self.on_pivot(active)):
            await call


def check_hooks(hooks: object) -> None:
    """Refuse anything but hooks or None, before anything is sent."""
    if not isinstance(hooks, Hooks | None):
        refuse("hooks", hooks, "give qmpsnap.Hooks(...)")


def outcome(plan: Plan, graph: Graph) -> Done:
    """The result of a plan that was run to its end, by the graph as read back."""
    return Done(
        op=plan.op,
        chains=graph.chains(*plan.disks),
        active=moved_roots(plan, graph),
        left=left_nodes(plan, graph),
        invalid=plan.invalid,
        deleted=plan.deleted,
        notes=plan.notes,
        job_id=plan.job_id,
        prepared=plan.prepared,
        memory=plan.memory,
        changed=plan.ended != "rolled-back" and (plan.intent is None or bool(plan.steps)),
        ended=plan.ended,
    )


def joined(first: Done, then: Done) -> Done:
    """The result of two plans, of which the second was run after the first."""
    stood = [done.standstill_s for done in (first, then) if done.standstill_s is not None]
    return Done(
        op=first.op,
        chains={**first.chains, **then.chains},
        active=Frozen({**first.active, **then.active}),
        standstill_s=sum(stood) if stood else None,
        elapsed_s=first.elapsed_s + then.elapsed_s,
        bytes=first.bytes + then.bytes,
        left=tuple(dict.fromkeys((*first.left, *then.left))),
        invalid=(*first.invalid, *then.invalid),
        deleted=(*first.deleted, *then.deleted),
        notes=tuple(dict.fromkeys((*first.notes, *then.notes))),
        job_id=then.job_id,
        changed=first.changed or then.changed,
        ended=then.ended if first.ended == "finished" else first.ended,
    )


def stopped_between(error: QmpsnapError, done: Done, rest: Iterable[Plan]) -> QmpsnapError:
    """The error of a part of an operation, of which earlier parts were done and stay.

    One that says how a part can be gone on with, or that nobody knows what became of it, is the same one.
    """
    chains = "; ".join(f"{disk} is {draw(files)}" for disk, files in done.chains.items())
    again = f"what was done before stays ({chains}); the same command then does the rest"
    hint = f"{error.hint}; {again}" if error.hint else again
    if isinstance(error, Refused | TargetError | GraphMismatch):
        titles = [stage.title for part in rest for stage in part.stages if not stage.tidy]
        return Incomplete(
            f"{done.op} stopped between two of its parts: {error.message}",
            done=list(done.notes),
            remaining=titles,
            hint=hint,
            invalid=error.invalid,
            left=error.left,
        )
    error.hint = hint
    if error.changed is Changed.NO:
        error.changed = Changed.YES
    return error


def left_nodes(plan: Plan, graph: Graph) -> tuple[str, ...]:
    """Commands that free the nodes that the plan left unused and that are not ours."""
    used = {layer.node for disk in graph.disks.values() for layer in disk.layers}
    freed = {step.effect.node for step in plan.steps if isinstance(step.effect, DropNode)}
    had = [layer.node for disk in plan.disks for layer in plan.before.disks[disk].layers]
    return tuple(
        frees(node)
        for node in had
        if node in graph.nodes and node not in used and node not in freed and not node.startswith("#")
    )


def made_files(done: Iterable[Step]) -> tuple[str, ...]:
    """Files that these steps created, under their present names."""
    steps = tuple(done)
    whole = {step.arguments["partial"]: step.arguments["file"] for step in steps if step.command in _SEALS}
    made = (step.makes for step in steps if step.makes)
    return tuple(whole.get(file, file) for file in made)


def by_qemu(tried: Iterable[Step]) -> tuple[str, ...]:
    """Files that QEMU may have created for steps that failed; we could not see them."""
    steps = tuple(tried)
    probed = {step.arguments["filename"] for step in steps if step.way == "probe"}
    copies = (step.copy.file for step in steps if step.copy is not None)
    targets = (*(overlay.file for overlay in overlays(steps)), *copies)
    return tuple(f"{file} (if QEMU created it)" for file in targets if file in probed)


def invalid_now(plan: Plan, failed: Iterable[Step]) -> tuple[str, ...]:
    """Files that hold no moment, under the names that they have after these steps failed."""
    files = {step.arguments["file"]: step.arguments["to"] for step in failed if step.command == "retire-file"}
    kept = {to: file for file, to in files.items() if to}
    return (*(kept.get(file, file) for file in plan.invalid), *(file for file, to in files.items() if not to))


def with_stayed(done: Done, plan: Plan, stayed: Collection[tuple[Step, str]]) -> Done:
    """The result where these steps have left a file, each for a reason: that is noted."""
    if not stayed:
        return done
    notes = tuple(f"{step.arguments['file']} stays: {why}" for step, why in stayed)
    return replace(done, invalid=invalid_now(plan, [step for step, _ in stayed]), notes=(*done.notes, *notes))


def vanished(plan: Plan) -> JobFailed:
    """The error for a job that ended unseen, and not as it should have.

    A commit writes into layers, a load into memory and disks. The others change a chain, or nothing, and the
    chain has been read.
    """
    changed = Changed.YES if plan.op == "revert-internal" else Changed.NO
    if plan.op == "commit":
        changed = Changed.YES if plan.invalid else Changed.UNKNOWN
    return JobFailed(
        plan.vanished, job_id=plan.job_id, error="vanished", changed=changed, invalid=plan.invalid
    )


def same(plan: Plan, graph: Graph) -> bool:
    """Whether what the plan touches is as it was when the plan was made."""
    if graph.chains(*plan.disks) != plan.chains_before or _sizes(plan, graph) != _sizes(plan, plan.before):
        return False
    return not _inside(plan) or all(
        _snapshots(graph.disks[name]) == _snapshots(plan.before.disks[name]) for name in plan.disks
    )


def _sizes(plan: Plan, graph: Graph) -> list[int]:
    """Bytes of each disk: an overlay of the size before a block_resize would take away what was added."""
    return [graph.disks[name].active.virtual_size for name in plan.disks if graph.disks[name].layers]


def _inside(plan: Plan) -> bool:
    """Whether the plan creates, deletes or loads snapshots inside images."""
    return any(
        isinstance(step.effect, Inside)
        or step.kind == "loadvm"
        or (step.command.startswith("snapshot-") and step.detail["disks"])
        for step in plan.steps
    )


def _snapshots(disk: Disk) -> list[list[str]]:
    """Names of the internal snapshots of each layer, sorted: ids cannot be predicted.

    Without those that a revert keeps for itself, until it is done.
    """
    return [
        sorted(snapshot.name for snapshot in layer.snapshots if not is_kept_inside(snapshot.name))
        for layer in disk.layers
    ]


def mismatch(plan: Plan, graph: Graph) -> str:
    """How the chains differ from the predicted ones; "" when they do not.

    Files and formats of each chain are compared; and of each layer whose backing file was to change, whether
    its header names the file below.
    """
    if plan.after is None:
        return _unexpected(plan, graph)
    checked = _callers_files(plan)
    for name, files in plan.chains_after.items():
        disk = graph.disks.get(name)
        if disk is None:
            return f"disk {name} is gone"
        if disk.files != files:
            return f"the chain of {name} is {list(disk.files)}"
        if _inside(plan) and _snapshots(disk) != (expected := _snapshots(plan.after.disks[name])):
            return f"the internal snapshots of {name} are {_snapshots(disk)}, not {expected}"
        before = {layer.file: layer.backing for layer in plan.before.disks[name].layers}
        for index, wanted in enumerate(plan.after.disks[name].layers):
            layer = disk.layers[index]
            below = disk.layers[index + 1] if index + 1 < len(disk.layers) else None
            if layer.format != wanted.format:
                return f"{layer.file} has the format {layer.format}, not {wanted.format}"
            changed = layer.file not in before or before[layer.file] != wanted.backing
            if changed and layer.file not in checked and not _is_backed_by(layer, below):
                wanted_file = below.file if below else "none"
                return f"the header of {layer.file} names {layer.backing!r}, not {wanted_file}"
    return ""


def _unexpected(plan: Plan, graph: Graph) -> str:
    """How the chains differ from those that an earlier run's record, or a job's id, promised."""
    for name in plan.expect or plan.moves:
        if name not in graph.disks:
            return f"disk {name} is gone"
    for name, files in plan.expect.items():  # a record names files alone
        files_now = graph.disks[name].files
        if tuple(file for file in files_now if file.startswith("/")) != files:
            return f"the chain of {name} is {list(files_now)}"
    if plan.moves and not moved_roots(plan, graph):
        still = (f"of {name} is still {graph.disks[name].active.file}" for name in plan.moves)
        return f"the active layer {' and that '.join(still)}"
    return ""


def moved_roots(plan: Plan, graph: Graph) -> dict[str, str]:
    """The new active file of each disk whose root the plan moved.

    Of a job without a record only the outcome shows which of `plan.moves` it was on.
    """
    predicted = plan.after is not None or plan.expect
    return {
        name: graph.disks[name].active.file
        for name in plan.moves
        if predicted or graph.disks[name].files[:1] != plan.before.disks[name].files[:1]
    }


def _callers_files(plan: Plan) -> frozenset[str]:
    """Files that the caller created; their headers were compared with the disk's files, not with names."""
    copies = (
        step.copy.file
        for step in plan.steps
        if step.copy is not None and step.arguments.get("mode", "existing") == "existing"
    )
    callers = (overlay.file for overlay in overlays(plan.steps) if overlay.made_by == "caller")
    return frozenset((*callers, *copies)).difference(made_files(plan.steps))


def _is_backed_by(layer: Layer, below: Layer | None) -> bool:
    if below is None or layer.backing is None:
        return below is None and layer.backing is None
    if not layer.file.startswith("/") or not below.local:
        return True
    named = backing_path(layer.backing, of=layer.file)
    return below.file in {layer.backing, named and posixpath.normpath(named)}
