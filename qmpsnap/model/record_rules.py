"""Rules that a record has to meet before anything is done because of it: its parts must be consistent.

A directory of records may have come from somebody else, together with images, so a record is not trusted. A
record that breaks a rule is reported and skipped, like a truncated one.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict

from msgspec import Struct, defstruct

from qmpsnap.model.document import AbsolutePath, Count, Text, take
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.names import invalid_names, is_name
from qmpsnap.model.record import IntentRecord, Member, MomentRecord
from qmpsnap.model.step import DropLayers, Later, MoveRoot, PutOverlays, Step

_PARAMETERS = ("max-bandwidth",)  # migration parameters that an operation sets, and later restores

_SENT = frozenset({
    "transaction", "blockdev-add", "blockdev-del", "blockdev-reopen", "qom-set",
    "block-stream", "block-commit", "drive-mirror", "blockdev-mirror", "block-job-cancel",
    "job-complete", "job-finalize", "job-dismiss",
    "human-monitor-command", "stop", "cont", "system_reset", "snapshot-save", "snapshot-load",
    "migrate", "migrate-set-capabilities", "migrate-set-parameters", "getfd", "add-fd", "closefd",
    "remove-fd",
    "await-job", "await-migration", "await-closed", "check-roots", "check-active",
})  # fmt: skip
"""Commands and waits in the plan of a recorded operation. None of them is sent to QEMU as recorded."""


class _Ended(Struct, forbid_unknown_fields=True):
    directory: AbsolutePath
    ids: tuple[Text, ...]
    moments: tuple[Text, ...] = ()


class _Unnamed(Struct, forbid_unknown_fields=True):
    directory: AbsolutePath
    id: Text
    disks: tuple[Text, ...] = ()


class _Capability(TypedDict):
    capability: str
    state: bool


class _Capabilities(TypedDict):
    capabilities: tuple[_Capability, ...]


_Node = TypedDict("_Node", {"node-name": str})


class _Made(Struct):  # other arguments are not read again
    file: AbsolutePath


def _of(**types: Any) -> type[Struct]:  # noqa: ANN401 - a type's annotation
    """The arguments of an action."""
    return defstruct("Arguments", [*types.items()], forbid_unknown_fields=True)


_SEALED = _of(partial=AbsolutePath, file=AbsolutePath)
_KEPT = {"directory": AbsolutePath, "id": Text}
_ACTIONS: Mapping[str, type[Struct]] = {
    **dict.fromkeys(
        ("create-overlay", "create-file", "create-image", "create-memory", "create-store"), _Made
    ),
    "reserve-memory": _of(file=AbsolutePath, at_most_bytes=Count, process=Text),
    "seal-memory": _SEALED,
    "seal-store": _SEALED,
    "retire-file": _of(file=AbsolutePath, policy=Literal["rename", "remove", "keep"], to=Text),
    "remove-state": _of(file=AbsolutePath, id=Text, tag=Text),
    "finish-record": _Ended,
    "keep-moment": _of(**_KEPT, name=Text),
    "keep-store": _of(**_KEPT, by=Text, instead_of=AbsolutePath),
    "keep-branch": _of(**_KEPT, overlays=dict[str, AbsolutePath]),
    "keep-link": _Unnamed,
    "keep-lost": _of(**_KEPT, disk=Text),
    "keep-place": _of(**_KEPT, disk=Text, gone=tuple[Text, ...], into=Text),
    "keep-continued": _of(**_KEPT, disk=Text, file=AbsolutePath),
    "link-records": _of(place=AbsolutePath, directory=AbsolutePath),
}
"""Actions on files that a record may contain, each with the types of its arguments."""


def is_plain(path: str) -> bool:
    """Whether a path is absolute, and without control characters, which a terminal could interpret."""
    return path.startswith("/") and not any(map(_controls, path))


def check_intent(record: IntentRecord) -> None:
    """Check that an operation's steps are known, and name only its own chains and the files that it creates.

    Raises:
        ValueError: When a part does not belong to the operation; the message names it.
    """
    state, overlays = record.state, record.overlays
    _member(record.member)
    _plain("made", record.made)
    _plain("overlays", overlays.values())
    _plain("folded", record.folded)
    _plain("target", [record.target] if record.target else [])
    _state(state)
    if record.origin is None and (
        state is not None or any(step.pauses or step.loads for step in record.steps)
    ):
        raise ValueError("an operation on the guest without its 'origin'")
    if record.prepared and record.loads:
        raise ValueError("'prepared' has overlays for another QEMU, and memory is loaded into this one")
    partial = (state.partial,) if state is not None else ()
    _among("overlays", overlays, record.chains)
    _among("made", record.made, (*overlays.values(), *partial, record.target))
    _apart(overlays, record.chains)
    if state is not None:
        _among("overlays", overlays, (disk for disk, files in record.chains.items() if files))
    _among("moves", record.moves, record.chains)
    _among("after", record.after, record.chains)
    _stamps(record.stamps)
    _plain("renews", record.renews.values())
    for step in record.steps:
        _step(step, record)
    before = tuple(file for files in record.chains.values() for file in files)
    _among("folded", record.folded, before)
    if record.folded:
        left = {
            disk: tuple(file for file in files if file not in record.folded)
            for disk, files in record.chains.items()
        }
        if dict(record.after) != left:
            raise ValueError("'folded' is not the difference between 'chains' and 'after'")
        _one_fold(record)


def _step(step: Step, record: IntentRecord) -> None:
    """Check one step by itself, and that it belongs to this operation."""
    if step.job_id not in {"", record.id}:
        raise ValueError(f"{step.command!r} is on the job {step.job_id!r}")
    if step.on == "host":
        _action(step, record)
    elif step.command not in _SENT:
        raise ValueError(f"{step.command!r} is not a step of any operation")
    match step.command, step.effect:
        case "blockdev-del", _:
            take(_Node, step.arguments)
        case "migrate-set-capabilities", _:
            take(_Capabilities, step.arguments)
        case "migrate-set-parameters", _:
            take(dict[str, int | Text], step.arguments)
            _among("parameters", step.arguments, _PARAMETERS)
        case _, MoveRoot(root=root) | Later(effect=MoveRoot(root=root)):
            _among("root", (root.disk,), record.chains)
            if not step.job_id and record.after.get(root.disk, ())[:1] != (root.file,):
                raise ValueError(f"{step.command!r} moves {root.disk!r} to {root.file!r}, unlike 'after'")
        case _, DropLayers(disk=disk):
            _among("disk", (disk,), record.chains)
        case _, PutOverlays(overlays=overlays):
            _among("overlays", (overlay.disk for overlay in overlays), record.chains)
        case _:
            pass


def _action(step: Step, record: IntentRecord) -> None:
    if step.command not in _ACTIONS:
        raise ValueError(f"{step.command!r} is not an action of any operation")
    take(_ACTIONS[step.command], step.arguments)
    arguments, state = step.arguments, record.state
    own = {file for chains in (record.chains, record.after) for files in chains.values() for file in files}
    match step.command:
        case "seal-memory" | "seal-store":
            if state is None or (arguments["partial"], arguments["file"]) != (state.partial, state.file):
                raise ValueError(f"{step.command!r} names other files than 'state'")
        case "retire-file":
            file, to = arguments["file"], arguments["to"]
            _among("retire-file", (file,), own)
            if to and to not in invalid_names(file):
                raise ValueError(f"{file!r} gets the name {to!r}, which is not a name for a folded file")
            if (arguments["policy"] == "rename") is not bool(to):
                raise ValueError(f"{file!r} is to be renamed without a new name, or has one without need")
        case "keep-store":
            instead = arguments["instead_of"]
            if arguments["by"] != record.id or state is None or state.mode != "in-place":
                raise ValueError("'keep-store' is of another operation than this, or one without a store")
            if posixpath.dirname(instead) != posixpath.dirname(state.file) or instead == state.file:
                raise ValueError(f"'keep-store' replaces {instead!r}, which is not beside its store")
        case "keep-branch":
            if dict(arguments["overlays"]) != record.overlays:
                raise ValueError("'keep-branch' names other files than 'overlays'")
        case "keep-place":
            named = (*arguments["gone"], *([arguments["into"]] if arguments["into"] else []))
            _among("keep-place", (file for file in named if file.startswith("/")), own)
        case "keep-continued":
            _among("keep-continued", (arguments["file"],), own)
        case _:
            pass


def _one_fold(record: IntentRecord) -> None:
    """Check that the folded files are consecutive in the disk's chain, which lists only files."""
    chain, count = record.chains.get(record.disk, ()), len(record.folded)
    at = chain.index(record.folded[0]) if record.folded[0] in chain else len(chain)
    if chain[at : at + count] != record.folded:
        raise ValueError(f"the files in 'folded' are not consecutive in the chain of {record.disk!r}")


def check_moment(record: MomentRecord) -> None:
    """Check that a moment names layers of its own chains, and overlays that are not among these.

    Raises:
        ValueError: When a part does not belong to the moment; the message names it.
    """
    _member(record.member)
    _plain("covered", (file for file in record.covered.values() if file.startswith("/")))
    _state(record.state)
    for overlays in (record.overlays, *record.branches, *record.continued):
        _plain("overlays", overlays.values())
        _among("overlays", overlays, record.covered)
        _apart(overlays, record.chains)
    _plain("marks", record.marks)
    for mark in record.marks.values():
        if not re.fullmatch(r"[0-9a-f]{32}-\d+", mark):
            raise ValueError(f"'marks' contains {mark!r}, which is not a mark")
    _stamps(record.stamps)
    for disk, files in record.chains.items():
        if files and record.covered.get(disk) != files[0]:
            raise ValueError(
                f"'covered' of {disk!r} is {record.covered.get(disk)!r}, but its chain begins with "
                f"{files[0]!r}"
            )
        if disk in record.formats and len(record.formats[disk]) != len(files):
            raise ValueError(f"'formats' of {disk!r} does not have an entry for each file of its chain")


def _stamps(stamps: Mapping[str, str]) -> None:
    _plain("stamps", stamps)
    for stamp in stamps.values():
        if not re.fullmatch(r"[0-9]{1,20}-[0-9]{1,20}-[0-9a-f]{8}", stamp):
            raise ValueError(f"'stamps' contains {stamp!r}, which is not a stamp")


def _member(member: Member | None) -> None:
    if member is not None and not (member.name in member.of and all(map(is_name, member.of))):
        raise ValueError("'member' names machines that are none of a group, or not this one")


def _state(state: KeptState | None) -> None:
    if state is None:
        return
    _plain("state", (state.file,))
    # The tag decides what is loaded and whether a store may be removed, so a user's snapshot name is refused.
    if state.tag and not re.fullmatch(r"qmpsnap-[0-9a-f]{8}", state.tag):
        raise ValueError(f"'tag' is {state.tag!r}, which is not a tag of qmpsnap's")


def _controls(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or code in {0x2028, 0x2029}


def _plain(key: str, paths: Iterable[str]) -> None:
    for path in paths:
        if not is_plain(path):
            raise ValueError(
                f"{key!r} contains {path!r}, which is not an absolute path without control characters"
            )


def _among(key: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    allowed = set(allowed)
    for name in names:
        if name not in allowed:
            raise ValueError(f"{key!r} contains {name!r}, which does not belong to the record's chains")


def _apart(overlays: Mapping[str, str], chains: Mapping[str, tuple[str, ...]]) -> None:
    for disk, file in overlays.items():
        if file in chains.get(disk, ()):
            raise ValueError(f"'overlays' contains {file!r}, a layer that existed before the operation")
