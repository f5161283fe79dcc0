"""Actions on records: what is about to happen, and what is known of a moment. One small JSON file each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.record_changes import deleted_from, without_layers
from qmpsnap.model.step import Step


def write_record(directory: str, record: IntentRecord) -> Step:
    """Write down what is about to happen, so that whoever comes after a crash can end it."""
    return Step(
        on="host",
        command="write-record",
        arguments=Frozen(directory=directory, id=record.id),
        detail=Frozen(record=record),
        undo=(finish_record(directory, (record.id,)),),
        restores=record.loads and not record.overlays,  # inside images nobody could finish anything
    )


def record_of(step: Step) -> IntentRecord | None:
    """The record of the operation that the step writes, or None."""
    return cast("IntentRecord", step.detail["record"]) if step.command == "write-record" else None


def finish_record(directory: str, ids: tuple[str, ...], moments: tuple[str, ...] = ()) -> Step:
    """Remove the records of operations that have ended, and of moments that are no more.

    Args:
        directory: Where they lie.
        ids: Of the operations. A moment that one of them made keeps its record, which has the same id.
        moments: Ids of the moments' records.
    """
    arguments: dict[str, Any] = {"directory": directory, "ids": ids}
    if moments:
        arguments["moments"] = moments
    return Step(on="host", command="finish-record", arguments=Frozen(arguments))


def keep_moment(directory: str, id: str, name: str) -> Step:  # noqa: A002 - a record's word
    """Turn a snapshot's record into the record of its moment."""
    return Step(on="host", command="keep-moment", arguments=Frozen(directory=directory, id=id, name=name))


def keep_store(directory: str, id: str, *, by: str, instead_of: str) -> Step:  # noqa: A002 - as above
    """Name in a moment's record the store that an operation has made, and remove the stream that it replaces.

    If the moment was deleted meanwhile, the store is removed.

    Args:
        directory: Where the record lies.
        id: That of the moment's record.
        by: The operation's id, under which its own record names the store.
        instead_of: The stream.
    """
    arguments = Frozen(directory=directory, id=id, by=by, instead_of=instead_of)
    return Step(on="host", command="keep-store", arguments=arguments, owed=True)


def keep_branch(directory: str, id: str, overlays: Mapping[str, str]) -> Step:  # noqa: A002 - as above
    """Add to a moment's record the overlays that began there by a revert.

    Args:
        directory: Where the record lies.
        id: That of the moment's record.
        overlays: New overlay of each disk.
    """
    arguments = Frozen(directory=directory, id=id, overlays=dict(overlays))
    return Step(on="host", command="keep-branch", arguments=arguments, owed=True)


def keep_link(directory: str, id: str, disks: tuple[str, ...] = ()) -> Step:  # noqa: A002 - as above
    """Delete a moment, but keep in its record which overlays began there: others are backed by it.

    Args:
        directory: Where the record lies.
        id: That of the moment's record.
        disks: Disks from which the moment is deleted while it stays on others; none: all.
    """
    arguments: dict[str, Any] = {"directory": directory, "id": id}
    if disks:
        arguments["disks"] = disks
    return Step(on="host", command="keep-link", arguments=Frozen(arguments))


def keep_lost(directory: str, id: str, disk: str) -> Step:  # noqa: A002 - as above
    """Note in a moment's record that a commit has written into the layer that held it.

    Args:
        directory: Where the record lies.
        id: That of the moment's record.
        disk: The disk whose layer it was.
    """
    arguments = Frozen(directory=directory, id=id, disk=disk)
    return Step(on="host", command="keep-lost", arguments=arguments, owed=True)


def keep_place(directory: str, id: str, disk: str, gone: tuple[str, ...], into: str = "") -> Step:  # noqa: A002
    """Note in a moment's record that layers have left the chain that it is read from; twice does no harm.

    Args:
        directory: Where the record lies.
        id: That of the moment's record.
        disk: The disk of these layers.
        gone: Files of these layers.
        into: The file that took their data (commit), and with it the moment where one of them held that; ""
            where none did (stream).
    """
    arguments = Frozen(directory=directory, id=id, disk=disk, gone=gone, into=into)
    return Step(on="host", command="keep-place", arguments=arguments, owed=True)


def link_records(place: str, directory: str) -> Step:
    """Make the records in a directory be found from another place too; twice does no harm."""
    arguments = Frozen(place=place, directory=directory)
    return Step(on="host", command="link-records", arguments=arguments, owed=True)


def keep_continued(directory: str, id: str, disk: str, file: str) -> Step:  # noqa: A002 - as above
    """Note in a moment's record a layer that goes on from it and did not begin there; it then leads to it.

    Args:
        directory: Where the record lies.
        id: That of the moment's record.
        disk: The disk of the layer.
        file: The layer: a mirror's target, what a stream has filled, an overlay that another client put on.
    """
    arguments = Frozen(directory=directory, id=id, disk=disk, file=file)
    return Step(on="host", command="keep-continued", arguments=arguments, owed=True)


def rewritten(records: Iterable[Record], steps: Iterable[Step]) -> tuple[Record, ...]:
    """The records after these steps, as far as they change the records of moments, or end others."""
    kept = tuple(records)
    for step in steps:
        if step.command == "finish-record":
            ids, moments = step.arguments["ids"], step.arguments.get("moments", ())
            kept = tuple(
                one for one in kept if one.id not in (moments if isinstance(one, MomentRecord) else ids)
            )
        else:
            kept = tuple(
                changed(one, step)
                if isinstance(one, MomentRecord) and one.id == step.arguments.get("id")
                else one
                for one in kept
            )
    return kept


def changed(moment: MomentRecord, step: Step) -> MomentRecord:
    """The record of a moment after a step on it."""
    arguments = step.arguments
    match step.command:
        case "keep-branch":
            return replace(moment, branches=_with(moment.branches, arguments["overlays"]))
        case "keep-link":
            return deleted_from(moment, arguments.get("disks", ()))
        case "keep-lost":
            return replace(moment, lost=tuple(dict.fromkeys((*moment.lost, arguments["disk"]))))
        case "keep-continued":
            layer = {arguments["disk"]: arguments["file"]}
            return replace(moment, continued=_with(moment.continued, layer))
        case "keep-place":
            gone, into = arguments["gone"], arguments["into"]
            return without_layers(moment, arguments["disk"], gone=gone, into=into)
        case _:
            return moment


def _with(layers: tuple[Mapping[str, str], ...], more: Mapping[str, str]) -> tuple[Mapping[str, str], ...]:
    return layers if more in layers else (*layers, Frozen(more))
