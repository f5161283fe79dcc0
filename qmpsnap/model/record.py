"""What we write down because it cannot be read back: intents and moments, as JSON.

A record is read by whoever comes later, perhaps as root, and files that it names as made may be
removed: so what is read is checked field by field, and such a name must be an absolute path.
Layers are named as QEMU's graph names them, which need not be a path.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.errors import BadName
from qmpsnap.model.fields import Fields
from qmpsnap.model.frozen import Frozen, FrozenStruct
from qmpsnap.model.kept_state import KeptState, state_json, state_of
from qmpsnap.model.names import check_name
from qmpsnap.model.record_rules import check_intent, check_moment

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "IntentRecord",
    "KeptState",
    "MomentRecord",
    "Record",
    "Settings",
    "from_json",
    "moment_of",
    "to_json",
]

VERSION = 1
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_OPS = (
    "stream", "commit", "mirror", "snapshot",
    "checkpoint", "checkpoint-internal", "revert", "revert-internal", "save",
)  # fmt: skip
_POLICIES = ("", "rename", "remove", "keep")


class Settings(FrozenStruct, frozen=True):
    """What a QEMU was set to before an operation, to be put back.

    Attributes:
        running: Whether the guest ran.
        capabilities: Of each migration capability its name and whether it was on.
        parameters: Of each migration parameter its name and its value.
        process: Which QEMU it was; "" where that was not known.
    """

    running: bool
    capabilities: Mapping[str, bool] = Frozen()
    parameters: Mapping[str, int | str] = Frozen()
    process: str = ""


class IntentRecord(FrozenStruct, frozen=True):
    """An operation that was begun: enough for a stranger to finish or to undo it.

    Attributes:
        id: That of the operation's job; part of the record's file name.
        op: "stream", "commit", "mirror", "snapshot", "checkpoint", "revert", "save", or, inside the images,
            "checkpoint-internal" or "revert-internal".
        created: ISO 8601 time in UTC.
        chains: Files of each disk's chain, active first, before the operation.
        after: The same chains once it has succeeded (stream, commit, mirror).
        made: Files that the operation makes.
        overlays: Overlay of each disk (snapshot, checkpoint, revert).
        name: The moment's name (snapshot, checkpoint, revert).
        folded: Files that lose their moment by success and are then treated by `policy` (commit).
        policy: "rename", "remove" or "keep" (commit), else "".
        renames: New name of each folded file (policy "rename").
        invalid: Files that hold no moment from the job's start on (commit).
        target: The file that is written (mirror), else "".
        disk: The disk of a job, "" for a snapshot of several.
        state: The file of VM state that is made (checkpoint, save) or that is loaded (revert), or None.
        was: How QEMU was set, to be put back (checkpoint, revert, save), or None.
        directory: Where the record lies; not part of what is written.
        formats: Format of each file of `chains` (snapshot, checkpoint), or none.
        live: Whether its client is at work yet; not part of what is written, nor of what it is.
    """

    id: str
    op: str
    created: str
    chains: Mapping[str, tuple[str, ...]] = Frozen()
    after: Mapping[str, tuple[str, ...]] = Frozen()
    made: tuple[str, ...] = ()
    overlays: Mapping[str, str] = Frozen()
    name: str = ""
    folded: tuple[str, ...] = ()
    policy: str = ""
    renames: Mapping[str, str] = Frozen()
    invalid: tuple[str, ...] = ()
    target: str = ""
    disk: str = ""
    state: KeptState | None = None
    was: Settings | None = None
    directory: str = ""
    formats: Mapping[str, tuple[str, ...]] = Frozen()
    live: bool = False

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
            "chains": {disk: list(files) for disk, files in self.chains.items()},
            "made": list(self.made),
            "invalid": list(self.invalid),
        }

    @property
    def top(self) -> str:
        """The newest file that a commit folds, or copies; it, and what stands on it, reads what it read."""
        return next(iter(self.folded or self.chains.get(self.disk, ())), "")

    @property
    def started(self) -> float:
        """The same as `created`, in seconds since 1970."""
        return datetime.fromisoformat(self.created).timestamp()


class MomentRecord(FrozenStruct, frozen=True):
    """A moment that a snapshot made: what each disk read when its overlay began.

    Attributes:
        id: That of the operation that made it; part of the record's file name.
        name: The snapshot's name.
        created: ISO 8601 time in UTC.
        overlays: Overlay of each disk, which began at the moment.
        covered: File of each disk that holds the moment.
        chains: Files of each disk's chain as of the moment, newest first; the first is `covered`.
        branches: Overlays that began there later, by a revert, each by disk; the oldest first.
        state: VM state of the same instant, or None.
        directory: Where the record lies; not part of what is written.
        formats: Format of each file of `chains`; none in records of before there were any.
        deleted: Whether the moment was deleted, and is kept for what began there: others stand on that.
        lost: Disks of which no file holds the moment any more: a commit has written into that.
    """

    id: str
    name: str
    created: str
    overlays: Mapping[str, str] = Frozen()
    covered: Mapping[str, str] = Frozen()
    chains: Mapping[str, tuple[str, ...]] = Frozen()
    branches: tuple[Mapping[str, str], ...] = ()
    state: KeptState | None = None
    directory: str = ""
    formats: Mapping[str, tuple[str, ...]] = Frozen()
    deleted: bool = False
    lost: tuple[str, ...] = ()

    def began(self, disk: str) -> tuple[str, ...]:
        """Every overlay of the disk that began at the moment, the oldest first."""
        return tuple(one[disk] for one in (self.overlays, *self.branches) if disk in one)

    def read_from(self, disk: str) -> tuple[str, ...]:
        """Files that the moment of a disk is read from, as far as they were written down; newest first."""
        return self.chains.get(disk, ()) or (self.covered[disk],)

    def stands_on(self, other: MomentRecord) -> bool:
        """Whether a chain of this moment passes through an overlay that began at the other."""
        return any(
            file in other.began(disk)
            for disk, covered in self.covered.items()
            for file in (covered, *self.chains.get(disk, ()))
        )

    @property
    def file_name(self) -> str:
        """Last part of the path under which the record is kept."""
        return f"moment-{self.name}-{self.id}.json"


Record = IntentRecord | MomentRecord


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
        directory=intent.directory,
        formats={disk: intent.formats[disk] for disk in covered if disk in intent.formats},
    )


def to_json(record: Record) -> str:
    """Write a record as JSON, one line, in ASCII."""
    match record:
        case IntentRecord():
            body: dict[str, object] = {
                "version": VERSION,
                "kind": "intent",
                "id": record.id,
                "op": record.op,
                "created": record.created,
                "chains": {disk: list(files) for disk, files in record.chains.items()},
                "after": {disk: list(files) for disk, files in record.after.items()},
                "made": list(record.made),
                "overlays": dict(record.overlays),
                "name": record.name,
                "folded": list(record.folded),
                "policy": record.policy,
                "renames": dict(record.renames),
                "invalid": list(record.invalid),
                "target": record.target,
                "disk": record.disk,
                "state": state_json(record.state),
                "was": _settings_json(record.was),
                "formats": {disk: list(one) for disk, one in record.formats.items()},
            }
        case MomentRecord():
            body = {
                "version": VERSION,
                "kind": "moment",
                "id": record.id,
                "name": record.name,
                "created": record.created,
                "overlays": dict(record.overlays),
                "covered": dict(record.covered),
                "chains": {disk: list(files) for disk, files in record.chains.items()},
                "branches": [dict(one) for one in record.branches],
                "state": state_json(record.state),
                "formats": {disk: list(one) for disk, one in record.formats.items()},
                "deleted": record.deleted,
                "lost": list(record.lost),
            }
    return json.dumps(body) + "\n"


def from_json(text: str, *, directory: str = "") -> Record:
    """Read a record that `to_json` wrote.

    Raises:
        ValueError: When it is no JSON, of another version, or a field is missing or of the wrong shape.
    """
    try:
        body = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    fields = Fields(body, what="the record")
    if fields.value("version") != VERSION:
        raise ValueError(f"version {fields.value('version')!r}, only {VERSION} is known")
    match fields.value("kind"):
        case "intent":
            record: Record = IntentRecord(
                id=fields.text("id"),
                op=fields.choice("op", _OPS),
                created=fields.text("created"),
                chains=fields.chains("chains"),
                after=fields.chains("after"),
                made=fields.paths("made"),
                overlays=fields.path_by_key("overlays"),
                name=fields.text("name"),
                folded=fields.texts("folded"),
                policy=fields.choice("policy", _POLICIES),
                renames=fields.path_by_key("renames"),
                invalid=fields.texts("invalid"),
                target=fields.text("target"),
                disk=fields.text("disk"),
                state=state_of(fields),
                was=_settings(fields),
                formats=fields.chains("formats") if fields.has("formats") else {},
            )
        case "moment":
            record = MomentRecord(
                id=fields.text("id"),
                name=fields.text("name"),
                created=fields.text("created"),
                overlays=fields.path_by_key("overlays"),
                covered=fields.text_by_key("covered"),
                chains=fields.chains("chains") if fields.has("chains") else {},
                branches=_branches(fields),
                state=state_of(fields),
                formats=fields.chains("formats") if fields.has("formats") else {},
                deleted=fields.has("deleted") and fields.flag("deleted"),
                lost=fields.texts("lost") if fields.has("lost") else (),
            )
        case kind:
            raise ValueError(f"a record of unknown kind {kind!r}")
    check(record)
    if isinstance(record, IntentRecord):
        check_intent(record)
    else:
        check_moment(record)
    return replace(record, directory=directory)


def check(record: Record) -> None:
    """Check what becomes part of the record's own file name.

    Raises:
        ValueError: When the id, or a moment's name, is outside its grammar.
    """
    if not _ID.fullmatch(record.id):
        raise ValueError(f"{record.id!r} is no id")
    datetime.fromisoformat(record.created)
    if isinstance(record, MomentRecord) or record.name:
        try:
            check_name(record.name)
        except BadName as error:
            raise ValueError(error.message) from error


def _settings_json(was: Settings | None) -> dict[str, object] | None:
    if was is None:
        return None
    return {
        "running": was.running,
        "capabilities": dict(was.capabilities),
        "parameters": dict(was.parameters),
        "process": was.process,
    }


def _settings(fields: Fields) -> Settings | None:
    if not fields.has("was"):
        return None
    inner = fields.within("was")
    parameters: dict[str, int | str] = {}
    for name, value in inner.items("parameters").items():
        if not isinstance(value, int | str) or isinstance(value, bool):
            raise ValueError(f"parameter {name!r} holds {value!r}")  # noqa: TRY004  # as above
        parameters[name] = value
    return Settings(
        inner.flag("running"), inner.flag_by_key("capabilities"), parameters, inner.text("process")
    )


def _branches(fields: Fields) -> tuple[dict[str, str], ...]:
    """Overlays that began at a moment later; records of before there were any have no such field."""
    if not fields.has("branches"):
        return ()
    return tuple(Fields({"branches": one}).path_by_key("branches") for one in fields.list("branches"))
