"""What a caller wants: one frozen value per operation, with the names as they were spelled.

Each value is checked by the types of its fields when it is created: a word, path or number that no operation
takes is a `BadArgument`, a new name outside the grammar a `BadName`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from qmpsnap.model.arguments import (
    AbsolutePath,
    AtLeastOne,
    NewName,
    OptionalPath,
    Speed,
    Text,
    check_fields,
    refuse,
)
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.record import Member

OnError = Literal["report", "stop", "ignore"]
"""What a job does at an I/O error: end with it, pause until it is resumed, or try again."""

Folded = Literal["rename", "remove", "keep"]
"""What becomes of the files whose data was committed into the base."""

Ending = Literal["pivot", "finish"]
"""How a mirror ends: the disk pivots to the copy, or the copy is left as it is then."""

Sync = Literal["full", "top", "none"]
"""What a mirror copies: all that the disk reads, the active layer alone, or new writes only."""

Via = Literal["hmp", "jobs"]
"""How a checkpoint inside images is taken, loaded or deleted, through the human monitor or by jobs.

Through the human monitor when every writable disk takes part; by jobs when one is left out, and under a
throttle, where a revert through the human monitor crashes QEMU.
"""

FileMode = Literal["stop", "background", "in-place"]
"""How a checkpoint saves the memory to a file.

The guest is paused meanwhile; or it keeps running; or it is paused, and can be reverted in the same QEMU.
"""

Mode = Literal[FileMode, "internal"]
"""How a checkpoint saves the memory: as in FileMode, or inside the disks' own images."""

Format = Literal["raw", "qcow2"]
"""Format of a copy."""

Into = Literal["in-place", "new", "incoming"]
"""Where a machine is reverted.

In the same QEMU; or in a new one, for which overlays are created ("new"), and which, started on them with
`-S -incoming defer`, then loads the memory ("incoming").
"""


class _Checked:
    """Checks its fields when it is created."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def kind(self) -> str:
        """Which planner plans it."""
        return type(self).__name__.lower()


@dataclass(frozen=True, slots=True)
class Snapshot(_Checked):
    """New overlays on one or more disks, or a snapshot inside their active layers, at one instant.

    Attributes:
        name: The moment's name.
        disks: Disks to take, in any spelling; empty: every writable disk with a medium.
        files: Overlay's path for a disk of `disks`, by the same spelling; absolute.
        use_existing: Whether the caller has created the files.
        plain: Whether encrypted data may be stored unencrypted.
        inside: Whether it is taken inside the images; no chain changes, and there are no files.
        member: The machine's membership in a group, whose guests are then paused at one instant. None: no
            group.
    """

    name: NewName
    disks: tuple[Text, ...] = ()
    files: Mapping[Text, AbsolutePath] = field(default_factory=Frozen)
    use_existing: bool = False
    plain: bool = False
    inside: bool = False
    member: Member | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "files", Frozen(self.files))
        if self.inside:
            _refuse(
                self,
                ("files", "use_existing", "member"),
                "it is for overlays, and this snapshot is inside the images",
            )

    @property
    def label(self) -> str:
        """The name that the overlays' files contain: the machines of a group may share their base image."""
        return _label(self)

    @property
    def kind(self) -> str:
        """Which planner plans it."""
        if self.inside:
            return "snapshot-internal"
        return "snapshot" if self.member is None else "snapshot-paused"


@dataclass(frozen=True, slots=True)
class Delete(_Checked):
    """A moment is deleted, and all others stay.

    Attributes:
        name: The moment's name.
        via: How one inside images is deleted. None: with VM state by the rule of `Via`, else disk after disk.
        keep_files: Whether files stay that nothing needs any more after an external moment is deleted.
        look_in: More directories to search for images that are backed by the moment's layers.
        down: Whether the overlay of an external one is committed, if possible, even if a stream copied less.
    """

    name: Text
    via: Via | None = None
    keep_files: bool = False
    look_in: tuple[AbsolutePath, ...] = ()
    down: bool = False


@dataclass(frozen=True, slots=True)
class Prune(_Checked):
    """Delete external moments until few remain (`keep_last`), or until the chains are short (`max_depth`).

    Attributes:
        keep_last: How many moments to keep, the newest; or None.
        max_depth: How many layers each chain may have; or None.
        disks: Disks, in any spelling, whose moments and chains count; empty: all.
        keep_files: As in Delete.
        look_in: As in Delete.
    """

    keep_last: AtLeastOne | None = None
    max_depth: AtLeastOne | None = None
    disks: tuple[Text, ...] = ()
    keep_files: bool = False
    look_in: tuple[AbsolutePath, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.keep_last is None) == (self.max_depth is None):
            refuse("keep_last", self.keep_last, "give keep_last or max_depth, and not both")


@dataclass(frozen=True, slots=True)
class Stream(_Checked):
    """Backing data is copied up into a layer, which then no longer needs the layers between.

    Attributes:
        disk: The disk, in any spelling.
        base: The layer that stays below (excluded from the copy); None: no backing file is left.
        into: The layer that receives the data; None: the active layer.
        on_error: What the job does at an I/O error.
        speed: Limit in bytes/s; 0: none.
        plain: Whether encrypted data may be stored unencrypted.
    """

    disk: Text
    base: Text | None = None
    into: Text | None = None
    on_error: OnError = "report"
    speed: Speed = 0
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Commit(_Checked):
    """Layers' data is copied down into a layer below them.

    Attributes:
        disk: The disk, in any spelling.
        top: Newest layer to fold (included); None: the active layer, which ends in a pivot.
        base: Layer that receives the data (kept); None: the deepest one.
        keep_overlay: With the active layer as top: end at READY and leave the chain as it is.
        look_in: More directories that are searched for images that are backed by what changes.
        invalidate: Images that are backed by what changes and may become invalid, by path.
        folded: What becomes of the folded files.
        discard_internal: Whether internal snapshots and persistent bitmaps may be lost.
        on_error: What the job does at an I/O error.
        speed: Limit in bytes/s; 0: none.
        plain: Whether encrypted data may be stored unencrypted.
    """

    disk: Text
    top: Text | None = None
    base: Text | None = None
    keep_overlay: bool = False
    look_in: tuple[AbsolutePath, ...] = ()
    invalidate: tuple[AbsolutePath, ...] = ()
    folded: Folded = "rename"
    discard_internal: bool = False
    on_error: OnError = "report"
    speed: Speed = 0
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Mirror(_Checked):
    """A disk is copied elsewhere, and the copy follows the guest's writes.

    Attributes:
        disk: The disk, in any spelling.
        target: Path of the copy; absolute.
        ending: "pivot" or "finish".
        sync: "full", "top" or "none".
        format: Format of the copy; None: that of the active layer.
        use_existing: Whether the caller has created the target.
        discard_internal: Whether internal snapshots and persistent bitmaps may be lost by the pivot.
        on_error: What the job does at an I/O error, of source or target.
        speed: Limit in bytes/s; 0: none.
        plain: Whether encrypted data may be stored unencrypted.
    """

    disk: Text
    target: AbsolutePath
    ending: Ending
    sync: Sync = "full"
    format: Format | None = None
    use_existing: bool = False
    discard_internal: bool = False
    on_error: OnError = "report"
    speed: Speed = 0
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint(_Checked):
    """VM state and writable disks, at one instant: in a file and overlays, or inside the images.

    Attributes:
        name: The checkpoint's name.
        mode: How the memory is saved; that of a paused guest is saved by "stop" if "background" is asked for.
        memory: Absolute path of the file of VM state; "": beside the first disk's active layer, or inside.
        plain: Whether encrypted data may be stored unencrypted.
        leave: With "internal" alone: writable disks that take no part, in any spelling.
        via: With "internal" alone: how; None: by the rule of `Via`.
        store: Only for "background": whether its store is made next (`MakeStore`). The memory of a paused
            guest is then saved into a store at once, as by "in-place".
        member: Not with "internal": the machine's membership in a group. None: no group.
        fork: Not with "internal": whether a fork takes it for itself, and deletes it at its end.
    """

    name: NewName
    mode: Mode = "stop"
    memory: OptionalPath = ""
    plain: bool = False
    leave: tuple[Text, ...] = ()
    via: Via | None = None
    store: bool = False
    member: Member | None = None
    fork: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mode == "internal":
            _refuse(self, ("memory", "member", "fork"), "the mode 'internal' saves the memory in an image")
        else:
            _refuse(self, ("leave", "via"), f"it is for the mode 'internal', and this is {self.mode!r}")
        if self.mode != "background":
            _refuse(self, ("store",), f"it is for the mode 'background', and this is {self.mode!r}")

    @property
    def kind(self) -> str:
        """Which planner plans it."""
        return "checkpoint-internal" if self.mode == "internal" else "checkpoint"

    @property
    def label(self) -> str:
        """The name that its files contain, as for a snapshot."""
        return _label(self)


@dataclass(frozen=True, slots=True)
class MakeStore(_Checked):
    """The memory of a checkpoint is written into a store, so that the same QEMU can revert to it.

    Attributes:
        name: The checkpoint's name.
    """

    name: Text


@dataclass(frozen=True, slots=True)
class Revert(_Checked):
    """The machine is reverted to a moment.

    Attributes:
        name: The moment's name.
        leave: Disks, in any spelling, that are not reverted.
        discard: Whether the layers that the guest wrote to until now are removed; else they are kept.
        via: How an internal checkpoint is loaded; None: by the rule of `Via`.
        into: Where it is reverted. `leave`, `discard` and `via` are for "in-place" alone.
    """

    name: Text
    leave: tuple[Text, ...] = ()
    discard: bool = False
    via: Via | None = None
    into: Into = "in-place"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.into != "in-place":
            _refuse(self, ("leave", "discard", "via"), "it is for a revert in the same QEMU")

    @property
    def kind(self) -> str:
        """Which planner plans it."""
        return "revert" if self.into == "in-place" else f"revert-{self.into}"


def _label(intent: Snapshot | Checkpoint) -> str:
    return intent.name if intent.member is None else f"{intent.member.name}.{intent.name}"


def _refuse(intent: object, parameters: Iterable[str], why: str) -> None:
    """Refuse parameters that do not go with the rest."""
    for parameter in parameters:
        if value := getattr(intent, parameter):
            refuse(parameter, value, why)


@dataclass(frozen=True, slots=True)
class Save(_Checked):
    """VM state is saved to a file, and the guest stays paused.

    Attributes:
        file: Path of the file; absolute.
        plain: Whether encrypted data may be stored unencrypted.
    """

    file: AbsolutePath
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Restore(_Checked):
    """A QEMU that waits for VM state loads it from a file of `Save`.

    Attributes:
        file: Path of the file; absolute.
    """

    file: AbsolutePath


@dataclass(frozen=True, slots=True)
class Load(_Checked):
    """A QEMU that was started for a checkpoint, on overlays of its own, loads the memory of the checkpoint.

    Attributes:
        name: Name of the checkpoint, for errors.
        state: Its VM state.
        disks: The overlay that each disk has to read, by the disk's name.
        mapped: Whether QEMU maps the memory from a file, so that the state holds only the devices.
        resume: Whether the guest is then resumed.
        fifo: A FIFO through which the VM state comes; "": QEMU reads the file itself.
        unfinished: Whether its file is still being written, so that nothing is known of it; with `fifo` only.
    """

    name: Text
    state: KeptState
    disks: Mapping[Text, AbsolutePath] = field(default_factory=Frozen)
    mapped: bool = False
    resume: bool = False
    fifo: OptionalPath = ""
    unfinished: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "disks", Frozen(self.disks))
        check_fields(self)


@dataclass(frozen=True, slots=True)
class SaveDevices(_Checked):
    """The devices' state of a QEMU that maps its memory from a file is saved. The guest stays paused.

    Attributes:
        name: Name of the checkpoint to which the state belongs.
        file: Path of the file; absolute.
    """

    name: Text
    file: AbsolutePath


Intent = (
    Snapshot
    | Delete
    | Prune
    | Checkpoint
    | MakeStore
    | Revert
    | Save
    | Restore
    | Load
    | SaveDevices
    | Stream
    | Commit
    | Mirror
)
