"""What we write down because it cannot be read back: intents and moments.

Layers are named as QEMU's graph names them, which need not be a path.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from msgspec.structs import force_setattr

from qmpsnap.model.document import AbsolutePath, Text
from qmpsnap.model.frozen import Frozen, FrozenStruct
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.names import layer_key, state_directory, state_directory_choices
from qmpsnap.model.step import (
    DropLayers,
    Later,
    MoveRoot,
    PutOverlays,
    Root,
    Stage,
    Step,
    in_record,
    start_of,
)

Files = Mapping[str, tuple[Text, ...]]


class Origin(FrozenStruct, frozen=True):
    """The guest as an operation found it, which may have to pause it.

    Attributes:
        running: Whether the guest ran.
        process: Which QEMU it was; "" where that was not known.
    """

    running: bool
    process: Text = ""


class Member(FrozenStruct, frozen=True):
    """Which machine of a group it is, at whose common instant a moment is taken.

    Attributes:
        id: That of the group's moment, the same on each of its machines.
        name: What this machine is called in the group.
        of: Names of all machines of the group, this one included.
    """

    id: Text
    name: Text
    of: tuple[Text, ...]


class IntentRecord(FrozenStruct, frozen=True, tag_field="kind", tag="intent"):
    """An operation that was begun: its plan, by which a stranger finishes or undoes it.

    Attributes:
        id: That of the operation's job; part of the record's file name.
        op: The operation, as in `Plan`.
        created: ISO 8601 time in UTC.
        chains: Files of each disk's chain, active first, before the operation.
        after: The same chains once it has succeeded.
        formats: Format of each file of `chains`.
        stages: The plan's stages, without the step that writes the record.
        name: The moment's name, or "".
        state: The file of VM state that is saved or loaded, or None.
        origin: The guest as it was found, where the operation pauses it or changes its memory; else None.
        moves: Disks whose root moves to another file.
        folded: Files whose data is copied into another layer and that leave the chain.
        invalid: Files that hold no moment from the job's start on.
        invalid_after: Files that hold no moment once it has succeeded, under their later names.
        notes: What the operation's result tells its caller, for whoever ends it.
        prepared: Overlays for another QEMU to start from, by disk.
        memory: The file of VM state that it is to load, or "".
        member: Which machine of a group it is, where a moment of all of them is taken; else None.
        stamps: Stamps of the layers that it writes to or folds, as it began (`model/layer_stamps.py`).
        renews: Moments that get new stamps when it has ended: the directory of each record, by its id.
        directory: Where the record lies; not part of what is written.
        live: Whether its client is at work yet; not part of what is written.
    """

    id: Text
    op: Text
    created: Text
    chains: Files = Frozen()
    after: Files = Frozen()
    formats: Files = Frozen()
    stages: tuple[Stage, ...] = ()
    name: Text = ""
    state: KeptState | None = None
    origin: Origin | None = None
    moves: tuple[Text, ...] = ()
    folded: tuple[Text, ...] = ()
    invalid: tuple[Text, ...] = ()
    invalid_after: tuple[Text, ...] = ()
    notes: tuple[Text, ...] = ()
    prepared: Mapping[str, AbsolutePath] = Frozen()
    memory: Text = ""
    member: Member | None = None
    stamps: Mapping[str, Text] = Frozen()
    renews: Mapping[str, AbsolutePath] = Frozen()
    directory: str = ""
    live: bool = False

    def __post_init__(self) -> None:
        FrozenStruct.__post_init__(self)
        force_setattr(self, "stages", in_record(self.stages))

    @property
    def file_name(self) -> str:
        """Last part of the path under which the record is kept."""
        return f"intent-{self.id}.json"

    def to_json(self) -> dict[str, object]:
        """The operation as `jobs --json` prints it, of what a lost client left."""
        return {
            "id": self.id,
            "op": self.op,
            "created": self.created,
            "disk": self.disk,
            "name": self.name,
            "target": self.written,
            "chains": {disk: list(files) for disk, files in self.chains.items()},
            "made": list(self.made),
            "invalid": list(self.invalid),
        }

    @property
    def steps(self) -> tuple[Step, ...]:
        """All steps of the plan, in order."""
        return tuple(step for stage in self.stages for step in stage.steps)

    @property
    def start(self) -> Step | None:
        """The step that starts its job on a chain, or None."""
        return start_of(self.steps)

    @property
    def loads(self) -> bool:
        """Whether the guest's memory becomes another one."""
        return any(step.loads for step in self.steps)

    @property
    def made(self) -> tuple[str, ...]:
        """Files that the operation makes."""
        return tuple(step.makes for step in self.steps if step.makes)

    @property
    def overlays(self) -> dict[str, str]:
        """The new overlay of each disk, which no job writes."""
        found: dict[str, str] = {}
        for step in self.steps:
            match step.effect:
                case PutOverlays(overlays=overlays):
                    found |= {overlay.disk: overlay.file for overlay in overlays}
                case MoveRoot(root=root) if not step.job_id:
                    found[root.disk] = root.file
                case _:
                    pass
        return found | dict(self.prepared)

    @property
    def disk(self) -> str:
        """The one disk that its job works on, or that gets an overlay; "" where there is no such disk."""
        disks: set[str] = set()
        for step in self.steps:
            match step.effect:
                case PutOverlays(overlays=overlays):
                    disks.update(overlay.disk for overlay in overlays)
                case DropLayers(disk=disk) | Later(effect=MoveRoot(root=Root(disk=disk))):
                    disks.add(disk)
                case _:
                    pass
        return disks.pop() if len(disks) == 1 else ""

    @property
    def target(self) -> str:
        """The file that a mirror copies to, or ""."""
        copy = self.start.copy if self.start is not None else None
        return copy.file if copy is not None else ""

    @property
    def permanent(self) -> bool:
        """Whether it stays once the operation has succeeded: its layers hold no moment from then on."""
        ends = (step.arguments for step in self.steps if step.command in {"finish-record", "keep-moment"})
        return not any(self.id in {*one.get("ids", ()), one.get("id")} for one in ends)

    @property
    def top(self) -> str:
        """The newest file that a commit folds, or copies; it, and what stands on it, reads what it read."""
        return next(iter(self.folded or self.chains.get(self.disk, ())), "")

    @property
    def written(self) -> str:
        """The file that a job writes: a mirror's target, or the layer that a stream or a commit fills."""
        start = self.start
        match start.effect if start is not None else None:
            case DropLayers(above=above, base=base):
                file = above if start is not None and start.command == "block-stream" else base or ""
            case Later(effect=MoveRoot(root=root)) if self.target or not self.permanent:
                file = root.file
            case _:
                file = ""
        return file if file.startswith("/") else ""

    @property
    def started(self) -> float:
        """The same as `created`, in seconds since 1970."""
        return datetime.fromisoformat(self.created).timestamp()


class MomentRecord(FrozenStruct, frozen=True, tag_field="kind", tag="moment"):
    """A moment that a snapshot made: what each disk read when its overlay began.

    Attributes:
        id: That of the operation that made it; part of the record's file name.
        name: The snapshot's name.
        created: ISO 8601 time in UTC.
        overlays: Overlay of each disk, which began at the moment.
        covered: File of each disk that holds the moment.
        chains: Files of each disk's chain as of the moment, newest first; the first is `covered`.
        branches: Overlays that began there later, by a revert, each by disk; the oldest first.
        continued: Other layers that go on from the moment, each by disk: a mirror's target, a layer that a
            stream has cut off from what holds the moment, an overlay that another client has put on.
        state: VM state of the same instant, or None.
        directory: Where the record lies; not part of what is written.
        formats: Format of each file of `chains`; none in records of before there were any.
        deleted: Whether the moment was deleted, and is kept for what began there: others stand on that.
        marks: Marks in the headers of the layers that hold it, and of those that go on from it, each with the
            file's inode (MARK-INODE), by file, also under names of before; others' layers have none.
        lost: Disks of which no file holds the moment any more: a commit has written into that.
        deleted_from: Disks from which the moment was deleted while it stays on others.
        member: Which machine of a group it is, where it is a moment of all of them; else None.
        stamps: What shows later whether somebody has written to a layer that it is read from, by file
            (`model/layer_stamps.py`); none for a file that QEMU may still write to.
    """

    id: Text
    name: Text
    created: Text
    overlays: Mapping[str, AbsolutePath] = Frozen()
    covered: Mapping[str, Text] = Frozen()
    chains: Files = Frozen()
    branches: tuple[Mapping[str, AbsolutePath], ...] = ()
    continued: tuple[Mapping[str, AbsolutePath], ...] = ()
    state: KeptState | None = None
    directory: str = ""
    formats: Files = Frozen()
    deleted: bool = False
    lost: tuple[Text, ...] = ()
    marks: Mapping[str, Text] = Frozen()
    member: Member | None = None
    deleted_from: tuple[Text, ...] = ()
    stamps: Mapping[str, Text] = Frozen()

    @property
    def disks(self) -> tuple[str, ...]:
        """Disks that the moment is of: those from which it was not deleted."""
        gone = self.covered if self.deleted else self.deleted_from
        return tuple(disk for disk in self.covered if disk not in gone)

    def began(self, disk: str) -> tuple[str, ...]:
        """Every overlay of the disk that began at the moment, the oldest first."""
        if not self.branches:
            return (self.overlays[disk],) if disk in self.overlays else ()
        return tuple([one[disk] for one in (self.overlays, *self.branches) if disk in one])

    def goes_on(self, disk: str) -> tuple[str, ...]:
        """Every layer of the disk that reads on from the moment: what began there, and what `continued`."""
        began = self.began(disk)
        return (*began, *[one[disk] for one in self.continued if disk in one]) if self.continued else began

    @property
    def all_going_on(self) -> frozenset[str]:
        """The same of all its disks."""
        return frozenset(file for disk in self.covered for file in self.goes_on(disk))

    @property
    def leading(self) -> frozenset[str]:
        """Layers that lead to it: those that go on from it, and those that hold it."""
        return self.all_going_on.union(self.covered.values())

    @property
    def files(self) -> frozenset[str]:
        """Every file that it names, but for its VM state."""
        return self.all_going_on.union(self.covered.values(), *self.chains.values())

    def marked(self, files: Collection[str]) -> frozenset[str]:
        """These files, and their marks as far as they are known: what tells a layer under any name."""
        marks = (mark_of(self.marks[file]) for file in files if file in self.marks)
        return frozenset((*files, *marks))

    def read_from(self, disk: str) -> tuple[str, ...]:
        """Files that the moment of a disk is read from, as far as they were written down; newest first."""
        return self.chains.get(disk, ()) or (self.covered[disk],)

    @property
    def file_name(self) -> str:
        """Last part of the path under which the record is kept.

        It has a key of each layer that leads to the moment (those that go on from it, and those that hold it)
        and of its mark. Too many keys are "any".
        """
        layers = self.marked(self.leading)
        keys = "".join(sorted({layer_key(name) for name in layers}))
        return f"{self.prefix}{keys if len(keys) <= _KEYS else _ANY}.json"

    @property
    def prefix(self) -> str:
        """How the name of its file begins, whatever its layers."""
        return f"moment-{self.name}-{self.id}."


Record = IntentRecord | MomentRecord

_ANY, _KEY = "any", 4
_KEYS = 88  # characters: with name, id, and what a file has before it is whole, fewer than 255


def keys_of(file_name: str) -> list[str]:
    """Keys of layers in the name of a moment's record; none where it does not tell them all.

    Raises:
        ValueError: When it is no such name.
    """
    keys = file_name[file_name.rfind(".", 0, -5) + 1 : -5]  # without ".json"
    if keys == _ANY:
        return []
    if len(keys) % _KEY or len(keys) > _KEYS or len(keys) > len(file_name) - 13:
        raise ValueError("the keys of its layers are not in its name")
    return [keys[at : at + _KEY] for at in range(0, len(keys), _KEY)]


def moment_of(intent: IntentRecord) -> MomentRecord:
    """Return the moment that a snapshot's intent becomes when the snapshot succeeded."""
    covered = {disk: intent.chains[disk][0] for disk in intent.overlays if intent.chains.get(disk)}
    return MomentRecord(
        id=intent.id,
        name=intent.name,
        created=intent.created,
        overlays=intent.overlays,
        covered=covered,
        chains={disk: intent.chains[disk] for disk in covered},
        state=intent.state,
        member=intent.member,
        directory=intent.directory,
        formats={disk: intent.formats[disk] for disk in covered if disk in intent.formats},
    )


def mark_of(marked: str) -> str:
    """The mark of "MARK-INODE"."""
    return marked.partition("-")[0]


def unnamed(files: Iterable[str], records: Iterable[Record]) -> tuple[str, ...]:
    """Those of the files that no moment's record names."""
    named = {file for record in records if isinstance(record, MomentRecord) for file in record.files}
    return tuple(file for file in dict.fromkeys(files) if file not in named and file.startswith("/"))


def elsewhere(record: MomentRecord) -> tuple[tuple[str, ...], ...]:
    """Where a link to the record's directory belongs: for each disk that does not lead there, the choices.

    That is so for a disk on another base image than that whose name the directory has, for a layer that
    became a base image itself, and for an overlay in a directory with no other layer, because another program
    may make a base image of that. None is needed in a directory that the caller named.
    """
    disks = {
        disk: (*reversed(record.chains.get(disk, ())),) or (held,) for disk, held in record.covered.items()
    }
    choices = [state_directory_choices(files[0], files) for files in disks.values()]
    if not any(record.directory in places for places in choices):
        return ()
    layers = (file for one in record.continued for file in one.values())
    own = ((state_directory(file),) for file in layers)
    beside = (
        (posixpath.join(posixpath.dirname(file), posixpath.basename(record.directory)),)
        for file in record.overlays.values()
    )
    wanted = (places for places in (*choices, *own, *beside) if places and record.directory not in places)
    return tuple(dict.fromkeys(wanted))
