"""What an operation tells: while it runs, and at its end."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from qmpsnap.model.header import backing_path
from qmpsnap.plan.steps import DeleteNode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import anyio

    from qmpsnap.model.graph import Chains, Graph, Layer
    from qmpsnap.plan.plan import Plan
    from qmpsnap.run.target import Progress

__all__ = ["Done", "Hooks", "left_nodes", "mismatch"]


@dataclass(frozen=True, slots=True)
class Done:
    """The result of an operation, as read back after it.

    Attributes:
        op: "snapshot", "stream", "commit" or "mirror".
        chains: Files of each touched disk's chain, active first.
        active: The new active file of each disk whose root moved: start the machine from it.
        standstill_s: Seconds in which the guest's I/O stood still: the snapshot's transaction, or a
            pivot from QEMU's own event times (pending to concluded). It leaves out what the guest
            itself waits for. None where nothing was drained that we could measure.
        elapsed_s: Seconds of the whole operation.
        bytes: Bytes that the job copied, as QEMU counts them.
        left: Nodes of others that have no use any more, each as the command that frees it.
        invalid: Files that no longer hold their moment, under their present names.
        notes: What the caller should know.
        job_id: Id that the job had, or "".
    """

    op: str
    chains: Chains
    active: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    standstill_s: float | None = None
    elapsed_s: float = 0.0
    bytes: int = 0
    left: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    job_id: str = ""
    changed: bool = True

    def to_json(self) -> dict[str, object]:
        """The result as `--json` prints it."""
        return {
            "op": self.op,
            "changed": self.changed,
            "chains": {disk: list(files) for disk, files in self.chains.items()},
            "active": dict(self.active),
            "standstill_s": self.standstill_s,
            "elapsed_s": self.elapsed_s,
            "bytes": self.bytes,
            "left": list(self.left),
            "invalid": list(self.invalid),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the caller wants to be told, and how it says that it leaves.

    Attributes:
        progress: Called with each look at the job's progress; asks QEMU while the job runs.
        interval: Seconds between two looks.
        on_pivot: Called with the new active file of each disk, once the root has moved.
        detach: Set by the caller to leave the job running; the call raises Detached.
        cancel: Set by the caller to stop; the call raises Interrupted once all is undone.
    """

    progress: Callable[[Progress], Awaitable[None] | None] | None = None
    interval: float = 1.0
    on_pivot: Callable[[Mapping[str, str]], Awaitable[None] | None] | None = None
    detach: anyio.Event | None = None
    cancel: anyio.Event | None = None

    async def tell(self, progress: Progress) -> None:
        """Pass one look at the progress on."""
        if self.progress is not None and inspect.isawaitable(told := self.progress(progress)):
            await told

    async def tell_pivot(self, active: Mapping[str, str]) -> None:
        """Pass on where each disk's root is now."""
        if self.on_pivot is not None and inspect.isawaitable(told := self.on_pivot(active)):
            await told


def left_nodes(plan: Plan, graph: Graph) -> tuple[str, ...]:
    """Commands that free the nodes that the plan left without a use and that are not ours."""
    used = {layer.node for disk in graph.disks.values() for layer in disk.layers}
    freed = {step.node for step in plan.steps if isinstance(step, DeleteNode)}
    had = [layer.node for disk in plan.disks for layer in plan.before.disks[disk].layers]
    return tuple(
        f"blockdev-del {node}"
        for node in had
        if node in graph.nodes and node not in used and node not in freed and not node.startswith("#")
    )


def mismatch(plan: Plan, graph: Graph) -> str:
    """In what the chains differ from the predicted ones; "" when they do not.

    Files and formats of each chain are compared, and of each layer whose backing file was to change,
    that its header names the file below.
    """
    if plan.after is None and not plan.expect:
        for name in plan.moves:
            if graph.disks[name].active.file == plan.before.disks[name].active.file:
                return f"the active layer of {name} is still {graph.disks[name].active.file}"
    for name, files in plan.chains_after.items():
        found = graph.disks.get(name)
        if found is None:
            return f"disk {name} is gone"
        if found.files != files:
            return f"the chain of {name} is {list(found.files)}"
        if plan.after is None:
            continue
        before = {layer.file: layer.backing for layer in plan.before.disks[name].layers}
        for index, wanted in enumerate(plan.after.disks[name].layers):
            layer = found.layers[index]
            below = found.layers[index + 1] if index + 1 < len(found.layers) else None
            if layer.format != wanted.format:
                return f"{layer.file} has the format {layer.format}, not {wanted.format}"
            changes = layer.file not in before or before[layer.file] != wanted.backing
            if changes and not _stands_on(layer, below):
                wanted_file = below.file if below else "none"
                return f"the header of {layer.file} names {layer.backing!r}, not {wanted_file}"
    return ""


def _stands_on(layer: Layer, below: Layer | None) -> bool:
    if below is None or layer.backing is None:
        return below is None and layer.backing is None
    if not layer.file.startswith("/") or not below.local:
        return True
    return backing_path(layer.backing, of=layer.file) == below.file or layer.backing == below.file
