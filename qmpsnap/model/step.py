"""A step as data: what is sent or done, what takes it back, and what it does to the graph.

A step is one QMP command, one wait, or one action on files of ours. The builders in `plan/commands/` make
steps; nobody else does. Plans are made of them, and so are the records of operations: what a step holds is of
JSON's types, or a struct that can be read back. Only the effects are a closed union, which `effect.apply`
goes through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen, frozen
from qmpsnap.model.graph import Disk, Io

MadeBy = Literal["us", "caller", "qemu"]
"""Who makes a file: we, the caller beforehand, or QEMU."""


class Overlay(Struct, frozen=True):
    """One disk's part of a snapshot.

    Attributes:
        disk: The disk's name.
        covered: node-name of the active layer that is covered.
        node: node-name that the overlay gets.
        file: The overlay's path.
        backing: What its header records as backing file.
        made_by: Who makes the file.
        secret: Id of the secret object that opens it; "": it is not encrypted.
    """

    disk: str
    covered: str
    node: str
    file: str
    backing: str
    made_by: MadeBy
    secret: str = ""


class Root(Struct, frozen=True):
    """What a disk reads by a root.

    Attributes:
        disk: The disk's name.
        node: node-name of its active layer.
        file: Its path.
        format: Its driver.
        backing: What its header records as backing file, or None.
        chain: Files and formats of the layers below it, newest first.
        io: How its active layer is read and written.
        secret: Id of the secret object that opens that layer; "": it is not encrypted.
    """

    disk: str
    node: str
    file: str
    format: str
    backing: str | None
    chain: tuple[tuple[str, str], ...]
    io: Io = Io()
    secret: str = ""

    @classmethod
    def of(cls, disk: Disk, index: int = 0) -> Root:
        """What a disk reads by one of its layers, 0 being the active one."""
        layer, *below = disk.layers[index:]
        chain = tuple((each.file, each.format) for each in below)
        return cls(
            disk.name, layer.node, layer.file, layer.format, layer.backing, chain, layer.io, layer.secret
        )


class PutOverlays(Struct, frozen=True, tag="put-overlays"):
    """Each disk gets an overlay on its active layer, at one instant."""

    overlays: tuple[Overlay, ...]


class DropLayers(Struct, frozen=True, tag="drop-layers"):
    """Layers leave a chain, and the layer above them gets another backing file.

    Attributes:
        disk: The disk's name.
        above: File of the layer above those that leave.
        base: File of the layer that it is backed by then; None: it has no backing file any more.
        backing: What its header records; None: the path of `base`.
    """

    disk: str
    above: str
    base: str | None
    backing: str | None = None


class MoveRoot(Struct, frozen=True, tag="move-root"):
    """A disk reads by another root.

    Attributes:
        root: What it reads from then on. Layers that it had before are known better than `root.chain` tells.
        alone: Whether another device on the same node keeps that.
        closes: Whether QEMU closes the node of the old active layer.
    """

    root: Root
    alone: bool = False
    closes: bool = False


class AddNode(Struct, frozen=True, tag="add-node"):
    """A node is there that no disk has yet."""

    node: str
    format: str
    file: str


class DropNode(Struct, frozen=True, tag="drop-node"):
    """A node is gone."""

    node: str


class Inside(Struct, frozen=True, tag="inside"):
    """A snapshot inside the active layer of each disk comes, or goes.

    Attributes:
        disks: The disks' names.
        name: The snapshot's name.
        id: Which of the snapshots with that name; "": each of them. The id of a new one is not predicted.
        gone: Whether it goes.
    """

    disks: tuple[str, ...]
    name: str
    id: str = ""
    gone: bool = False


class Later(Struct, frozen=True, tag="later"):
    """Nothing yet: the job waits at READY, and job-complete has the effect."""

    effect: MoveRoot


Effect = PutOverlays | DropLayers | MoveRoot | AddNode | DropNode | Inside | Later


class Step(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One step of a plan. A step that starts a job which ends by itself has the effect of the job's end.

    Attributes:
        on: "qmp": a command is sent; "wait": nothing is sent; "host": an action on files of ours.
        command: What is sent or done, word for word as `-n` prints it.
        arguments: Its arguments, in JSON's types.
        kind: How it is done where sending the command is not all; "": the command itself says it.
        detail: What doing it takes beyond the arguments, in JSON's types where the step goes into a record.
        undo: What takes it back, in order; empty where nothing is to be taken back.
        on_failure: What is done when it failed before anything moved.
        effect: What it does to the graph; None: nothing.
        final: Whether the operation is carried to its end once it was sent: there is no rollback.
        writes: Whether bytes of a layer, its snapshots or VM state are others for good once it is done.
        pauses: Whether the guest is paused for it, so that QEMU's events tell for how long.
        drains: Whether the I/O of a guest that runs on stood still for the seconds that it takes.
        loads: Whether the guest's memory becomes another by it.
        unseen: Whether no graph tells if it was done.
        restores: Whether it is taken back also where the guest is left paused on disks that have moved.
        owed: Whether the operation's record has to stay when it could not be done.
    """

    on: Literal["qmp", "wait", "host"]
    command: str
    arguments: Mapping[str, Any] = Frozen()
    kind: str = ""
    detail: Mapping[str, Any] = Frozen()
    undo: tuple[Step, ...] = ()
    on_failure: tuple[Step, ...] = ()
    effect: Effect | None = None
    final: bool = False
    writes: bool = False
    pauses: bool = False
    drains: bool = False
    loads: bool = False
    unseen: bool = False
    restores: bool = False
    owed: bool = False

    @property
    def way(self) -> str:
        """How it is done: its kind, or its command."""
        return self.kind or self.command

    @property
    def makes(self) -> str:
        """The file that it creates on the host, or ""."""
        return str(self.arguments["file"]) if self.command in _MAKES else ""

    @property
    def on_state(self) -> bool:
        """Whether it starts a job on VM state: QEMU answers nobody while that works."""
        return self.command in _ON_STATE

    @property
    def job_id(self) -> str:
        """Id of the job that it starts, waits for, or ends; "" where it has to do with none."""
        id_of = self.arguments.get("job-id")
        if id_of is None and self.command in _ON_A_JOB:
            id_of = self.arguments.get("id", self.arguments.get("device"))
        return str(id_of or "")

    @property
    def copy(self) -> Root | None:
        """What the step, which starts a mirror, copies to; None for any other step."""
        if isinstance(self.effect, Later) and self.command in _MIRRORS:
            return self.effect.effect.root
        return None

    def to_json(self) -> dict[str, object]:
        """The step as `-n --json` prints it."""
        return {"command": self.command, "arguments": self.arguments, "on": self.on}

    def __str__(self) -> str:
        return f"{self.command} {dict(self.arguments)}"


_MAKES = frozenset({"create-overlay", "create-file", "create-image", "create-memory", "create-store"})
_MIRRORS = frozenset({"drive-mirror", "blockdev-mirror"})
_ON_STATE = frozenset({"snapshot-save", "snapshot-load", "snapshot-delete"})
_ON_A_JOB = frozenset(
    {
        "job-complete", "job-finalize", "job-cancel", "job-dismiss", "block-job-cancel",
        "await-job", "adopt-job",
    }
)  # fmt: skip


def start_of(steps: Iterable[Step]) -> Step | None:
    """The step that starts a job on a chain, or None."""
    return next((step for step in steps if "job-id" in step.arguments and not step.on_state), None)


class Stage(Struct, frozen=True, omit_defaults=True):
    """Steps after which the chains are read and compared.

    Attributes:
        title: What the stage does, in a few words.
        steps: In order.
        verify: Whether the graph is read after the last step and compared with `Plan.after`.
        tidy: Whether it is cleanup after the operation has succeeded: each step is tried, and none is rolled
            back.
    """

    title: str
    steps: tuple[Step, ...]
    verify: bool = False
    tidy: bool = False

    @property
    def groups(self) -> tuple[tuple[Step, ...], ...]:
        """The steps in order; overlays that follow each other may be created side by side."""
        groups: list[tuple[Step, ...]] = []
        for step in self.steps:
            if groups and step.command == groups[-1][0].command == "create-overlay":
                groups[-1] += (step,)
            else:
                groups.append((step,))
        return tuple(groups)


def in_record(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """What a record keeps of the stages of a plan, as it is read back from JSON.

    How a step is done, and taken back, its command says once more.
    """
    kept = tuple(stages)
    plain = [to_builtins(step.arguments) for stage in kept for step in stage.steps]
    arguments = iter([*map(frozen, plain)])
    return tuple(
        replace(
            stage,
            steps=tuple(
                replace(step, arguments=next(arguments), detail=Frozen(), undo=(), on_failure=())
                for step in stage.steps
            ),
        )
        for stage in kept
    )
