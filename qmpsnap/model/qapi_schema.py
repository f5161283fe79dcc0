"""The QMP that a QEMU speaks, as QEMU describes it: commands with their arguments, events, and types.

QAPI: query-qmp-schema (introspect.json). Types have numbers for names, which differ from QEMU to QEMU. An
entry of a kind that is not known here becomes a type of which nothing is known: it takes any value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET, UnsetType, ValidationError, convert

from qmpsnap.errors import Malformed
from qmpsnap.model.frozen import Frozen, FrozenStruct
from qmpsnap.model.qapi import Reply

_DEEPEST = 4  # types within a type, in a description


class SchemaMember(FrozenStruct, frozen=True):
    """An argument of a command, or another member of an object.

    Attributes:
        name: Its name.
        type: Name of its type in `Schema.types`.
        optional: Whether it may be left out.
        features: Such as "deprecated", "unstable".
    """

    name: str
    type: str
    optional: bool = False
    features: tuple[str, ...] = ()


class SchemaType(FrozenStruct, frozen=True):
    """A type.

    Attributes:
        kind: "builtin", "enum", "array", "object", "alternate"; or another word, which takes any value.
        json_type: Of a builtin: "string", "int", "number", "boolean", "null" or "value" (any).
        values: Of an enum: its words.
        element: Of an array: the type of its elements.
        members: Of an object: those that it always has.
        tag: Of an object with variants: the member whose value decides which variant it is; else "".
        variants: Of such an object: for a value of the tag, the type that has its further members.
        alternatives: Of an alternate: the types of which a value has one.
    """

    kind: str
    json_type: str = ""
    values: tuple[str, ...] = ()
    element: str = ""
    members: tuple[SchemaMember, ...] = ()
    tag: str = ""
    variants: Mapping[str, str] = Frozen()
    alternatives: tuple[str, ...] = ()


UNKNOWN = SchemaType("unknown")
"""What a type is that the schema lacks."""


class SchemaCommand(FrozenStruct, frozen=True):
    """A command, or an event.

    Attributes:
        name: Its name.
        arguments: Name of the type of its arguments, or of the event's data.
        returns: Name of the type of its answer; "" for an event.
        features: Such as "deprecated", "unstable".
    """

    name: str
    arguments: str
    returns: str = ""
    features: tuple[str, ...] = ()


class Schema(FrozenStruct, frozen=True):
    """What QMP a QEMU speaks.

    Attributes:
        commands: Its commands, by name.
        events: Its events, by name.
        types: The types, by name.
    """

    commands: Mapping[str, SchemaCommand] = Frozen()
    events: Mapping[str, SchemaCommand] = Frozen()
    types: Mapping[str, SchemaType] = Frozen()

    def type(self, name: str) -> SchemaType:
        """The type of that name; `UNKNOWN` if there is none."""
        return self.types.get(name, UNKNOWN)

    def members(self, name: str, given: Mapping[str, object] = Frozen()) -> tuple[SchemaMember, ...]:
        """The members of an object; none of any other type.

        Args:
            name: Name of the type.
            given: Values of members that are known; the tag's decides which variant it is.
        """
        kind = self.type(name)
        chosen = given.get(kind.tag) if kind.tag else None
        variant = kind.variants.get(chosen) if isinstance(chosen, str) else None
        return kind.members + (self.type(variant).members if variant else ())

    def words(self, name: str) -> tuple[str, ...]:
        """The words of an enum or a boolean, or of those among an alternate's types; none of other types."""
        kind = self.type(name)
        if kind.kind == "alternate":
            inner = (self.type(each) for each in kind.alternatives)
            return tuple(word for each in inner for word in _words(each))
        return _words(kind)

    def describe(self, name: str) -> str:
        """The type in words: "string", "on|off", "list of object"."""
        return self._describe(name, _DEEPEST)

    def _describe(self, name: str, depth: int) -> str:
        kind = self.type(name)
        match kind.kind:
            case "builtin":
                return {"int": "integer", "boolean": "true|false", "value": "any value"}.get(
                    kind.json_type, kind.json_type
                )
            case "enum":
                return "|".join(kind.values)
            case "array" if depth:
                return f"list of {self._describe(kind.element, depth - 1)}"
            case "object":
                return "object"
            case "alternate" if depth:
                return " or ".join(
                    dict.fromkeys(self._describe(each, depth - 1) for each in kind.alternatives)
                )
            case _:
                return "any value"


def _words(kind: SchemaType) -> tuple[str, ...]:
    if kind.kind == "builtin" and kind.json_type == "boolean":
        return ("true", "false")
    return kind.values


class _Part(Reply, frozen=True):
    """A member of an object, an alternate or an enum; each has some of these."""

    name: str = ""
    type: str = ""
    default: Any | UnsetType = UNSET
    features: tuple[Any, ...] = ()


class _Case(Reply, frozen=True):
    case: str
    type: str


class _Entry(Reply, frozen=True):
    """Whatever an entry can have, of those kinds that are known."""

    name: str
    meta_type: str
    features: tuple[Any, ...] = ()
    arg_type: str = ""
    ret_type: str = ""
    json_type: str = ""
    values: tuple[str, ...] = ()
    members: tuple[_Part, ...] = ()
    element_type: str = ""
    tag: str = ""
    variants: tuple[_Case, ...] = ()


def parse_schema(reply: object) -> Schema:
    """Parse the reply; what is not as expected is left out, or becomes a type of which nothing is known.

    Raises:
        Malformed: When it is not a list.

    QAPI: query-qmp-schema, SchemaInfo (introspect.json).
    """
    if not isinstance(reply, list | tuple):
        raise Malformed("QEMU's answer to query-qmp-schema is not a list")
    commands: dict[str, SchemaCommand] = {}
    events: dict[str, SchemaCommand] = {}
    types: dict[str, SchemaType] = {}
    for raw in reply:
        try:
            entry = convert(raw, _Entry)
        except ValidationError:
            continue
        if entry.meta_type in {"command", "event"}:
            found = SchemaCommand(entry.name, entry.arg_type, entry.ret_type, _features(entry.features))
            (commands if entry.meta_type == "command" else events)[entry.name] = found
        else:
            types[entry.name] = _type(entry)
    return Schema(commands, events, types)


def _type(entry: _Entry) -> SchemaType:
    members = tuple(
        SchemaMember(part.name, part.type, part.default is not UNSET, _features(part.features))
        for part in entry.members
        if entry.meta_type == "object"
    )
    return SchemaType(
        entry.meta_type,
        entry.json_type,
        entry.values or (tuple(part.name for part in entry.members) if entry.meta_type == "enum" else ()),
        entry.element_type,
        members,
        entry.tag,
        {each.case: each.type for each in entry.variants},
        tuple(part.type for part in entry.members) if entry.meta_type == "alternate" else (),
    )


def _features(given: Sequence[Any]) -> tuple[str, ...]:
    return tuple(each for each in given if isinstance(each, str))
