"""What may come next in a QMP command that is being typed, by this QEMU's schema and by its names of now."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence

from msgspec import Struct

from qmpsnap.errors import BadArgument
from qmpsnap.model.graph import Graph
from qmpsnap.model.job import Job
from qmpsnap.model.qapi_schema import Schema, SchemaMember
from qmpsnap.model.qmp_line import Typed, below, texts
from qmpsnap.model.qmp_words import Pair, pairs, split_command

HELP = "help"
"""The first word of a line that asks what a command takes."""

# Members whose value is a node that exists; `device` may also be a drive.
_NODES = frozenset(
    {
        "base-node", "device", "devices", "node", "node-name", "overlay", "parent", "replaces", "source",
        "target", "top-node", "vmstate",
    }
)  # fmt: skip
_NEW = ("blockdev-add", "x-blockdev-add")  # their node-name is a new one
_MATCHES = 200


class Names(Struct, frozen=True):
    """The names of what a machine has now.

    Attributes:
        nodes: Names of nodes.
        drives: Ids of drives (-drive).
        devices: Ids of the devices that have a disk (-device).
        jobs: Ids of jobs.
    """

    nodes: tuple[str, ...] = ()
    drives: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()


def names_of(graph: Graph, jobs: Iterable[Job]) -> Names:
    """The names that a graph has, and those of jobs."""
    disks = graph.disks.values()
    return Names(
        tuple(graph.nodes),
        tuple(disk.drive for disk in disks if disk.drive),
        tuple(disk.name for disk in disks if disk.name in {disk.qdev, _device_of(disk.qdev)}),
        tuple(job.id for job in jobs),
    )


def _device_of(qdev: str) -> str:
    """The id in a QOM path /machine/peripheral/ID/...; "" if it has none."""
    _, _, place, device, *_ = (*qdev.split("/"), "", "", "", "")
    return device if place == "peripheral" else ""


class Candidate(Struct, frozen=True):
    """One way to go on.

    Attributes:
        text: What replaces the word from `Completion.start` on.
        note: What it is, such as the type of its value; for display.
    """

    text: str
    note: str = ""


class Completion(Struct, frozen=True):
    """What may come next.

    Attributes:
        start: Offset in characters from which the text is replaced.
        candidates: The ways to go on.
    """

    start: int
    candidates: tuple[Candidate, ...] = ()


def complete(text: str, schema: Schema, names: Names) -> Completion:
    """Complete a line.

    Args:
        text: The line up to the cursor.
        schema: What this QEMU speaks.
        names: What the machine has now.
    """
    command, end = split_command(text)
    begins = len(text) - len(text.lstrip())
    if command == HELP and end < len(text):
        command, inner = split_command(text[end:])
        begins, end = len(text) - len(text[end:].lstrip()), end + inner
        if end == len(text):
            return Completion(begins, _commands(command, schema, ()))
    elif end == len(text):
        return Completion(begins, _commands(command, schema, (HELP,)))
    known = schema.commands.get(command)
    if known is None or text[end:].lstrip().startswith("{"):
        return Completion(len(text))
    typed, start = _complete_words(text, end)
    key, equals, value = text[start:].partition("=")
    given = [(pair.key, pair.value) for pair in typed]
    if not equals:
        return _members(schema, known.arguments, given, key, start)
    return _values(schema, command, known.arguments, given, key, (value, start + len(key) + 1), names)


def wants_names(text: str) -> bool:
    """Whether names of the machine may come next: the word before the cursor has a key already."""
    return bool(text) and "=" in re.split(r"\s", text)[-1]


def _commands(begun: str, schema: Schema, more: Sequence[str]) -> tuple[Candidate, ...]:
    listed = [*sorted(schema.commands), *more]
    notes = {name: ", ".join(command.features) for name, command in schema.commands.items()}
    return tuple(Candidate(name, notes.get(name, "")) for name in _matching(begun, listed))


def _complete_words(text: str, end: int) -> tuple[list[Pair], int]:
    """The words before the one at the cursor, and where that one begins."""
    typed: list[Pair] = []
    start = end
    try:
        for pair in pairs(text, end):
            if pair.end == len(text):
                break
            typed.append(pair)
            start = pair.end
    except BadArgument:
        pass  # the word at the cursor is not complete
    return typed, len(text) - len(text[start:].lstrip())


def _descend(
    schema: Schema, name: str, given: Sequence[Typed], path: Sequence[str]
) -> tuple[str, list[Typed]] | None:
    """The type at a path of keys below a type, and what was given there; None if there is nothing."""
    listed = list(given)
    for part in path:
        kind = schema.type(name)
        if kind.kind == "array" and part.isdecimal():
            name = kind.element
        else:
            found = {
                member.name: member.type for member in schema.members(_object_of(schema, name), texts(listed))
            }
            if part not in found:
                return None
            name = found[part]
        splits = [(below(key, (part,)), value) for key, value in listed]
        listed = [(split[1], value) for split, value in splits if split is not None and split[1]]
    return name, listed


def _object_of(schema: Schema, name: str) -> str:
    """The type itself, or of an alternate the one that is an object."""
    kind = schema.type(name)
    if kind.kind != "alternate":
        return name
    return next((each for each in kind.alternatives if schema.type(each).kind == "object"), name)


def _members(schema: Schema, name: str, given: Sequence[Typed], key: str, start: int) -> Completion:
    *path, begun = key.split(".")
    found = _descend(schema, name, given, path)
    if found is None:
        return Completion(start)
    inner, listed = found
    kind = schema.type(inner)
    if kind.kind == "array":
        index = len({each.partition(".")[0] for each, _ in listed})
        members: Iterable[SchemaMember] = (SchemaMember(str(index), kind.element),)
    else:
        members = schema.members(_object_of(schema, inner), texts(listed))
    whole = {each for each, _ in listed}
    fresh = {member.name: member for member in members if member.name not in whole}
    order = sorted(fresh, key=lambda each: fresh[each].optional)
    prefix = "".join(f"{part}." for part in path)
    candidates: list[Candidate] = []
    for each in _matching(begun, order):
        candidates += _ways(schema, fresh[each], prefix)
    return Completion(start, tuple(candidates))


def _ways(schema: Schema, member: SchemaMember, prefix: str) -> list[Candidate]:
    """The member with = after it, and with a dot if its value has members or elements."""
    described = schema.describe(member.type)
    note = ", ".join([described, *(["optional"] if member.optional else []), *member.features])
    kind = schema.type(member.type)
    ways = []
    if kind.kind in {"object", "array"} or _object_of(schema, member.type) != member.type:
        ways.append(Candidate(f"{prefix}{member.name}.", note))
    if kind.kind != "object":
        ways.append(Candidate(f"{prefix}{member.name}=", note))
    return ways


def _values(
    schema: Schema,
    command: str,
    name: str,
    given: Sequence[Typed],
    key: str,
    value: tuple[str, int],
    names: Names,
) -> Completion:
    begun, start = value
    path = key.split(".")
    found = _descend(schema, name, given, path)
    if found is None:
        return Completion(start)
    plain = begun[1:] if begun[:1] in {"'", '"'} else begun
    words = _matching(plain, schema.words(found[0]))
    member = next((part for part in reversed(path) if not part.isdecimal()), "")
    live = _matching(plain, _live(schema, command, member, found[0], names))
    candidates = [Candidate(word) for word in words] + [Candidate(shlex.quote(each)) for each in live]
    return Completion(start, tuple(candidates))


def _live(schema: Schema, command: str, member: str, name: str, names: Names) -> tuple[str, ...]:
    """Names of the machine that a member may have as its value."""
    kind = schema.type(name)
    if kind.kind == "alternate":
        if any(schema.type(each).tag == "driver" for each in kind.alternatives):
            return names.nodes  # a reference to a block device
        return ()
    if kind.json_type != "string":
        return ()
    if (member == "id" and command.startswith("job-")) or (
        member == "device" and command.startswith("block-job-")
    ):
        return names.jobs
    if member == "id" and not command.startswith(
        ("object-", "chardev-", "netdev_", "device_add", "block-export")
    ):
        return names.devices
    if member not in _NODES or command in _NEW:
        return ()
    return (*names.drives, *names.nodes) if member == "device" else names.nodes


def _matching(begun: str, words: Iterable[str]) -> list[str]:
    """The printable words that begin so; if none does, those that contain it."""
    listed = [word for word in dict.fromkeys(words) if word.isprintable() and word]
    fitting = [word for word in listed if word.startswith(begun)]
    return (fitting or [word for word in listed if begun in word])[:_MATCHES]
