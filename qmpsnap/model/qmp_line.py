"""A line that was typed at a prompt -> a QMP command, its arguments typed as this QEMU's schema says.

    block-commit device=vda speed=10M auto-dismiss=false     KEY=VALUE; KEY.SUB=VALUE for a member of it
    block-commit {"device": "vda"}                           all arguments as one JSON object
    {"execute": "block-commit", "arguments": {...}}          the whole command

What is JSON is sent as it is. A value of KEY=VALUE may itself be JSON, if it begins with { or [.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.qapi_schema import Schema, SchemaType
from qmpsnap.model.qmp_words import Json, Pair, Text, bad, pairs, read_json, split_command

_NUMBER = re.compile(r"([+-]?(?:0[xX][0-9a-fA-F]+|\d+))([KMGTPE]?)")
_UNITS = {unit: 1 << 10 * power for power, unit in enumerate(("", "K", "M", "G", "T", "P", "E"))}
_BOOLEANS = {"true": True, "on": True, "false": False, "off": False}
_OPEN = frozenset({"device_add"})  # takes the properties of any device, too, which the schema lacks
_NEAR = 5  # words

Typed = tuple[str, Text | Json]
"""What is left of a key below an object, and its value."""


class Request(Struct, frozen=True):
    """A command and its arguments."""

    command: str
    arguments: Mapping[str, object] = Frozen()


def read_line(line: str, schema: Schema) -> Request | None:
    """Read a line; None if it is blank, or a comment.

    Args:
        line: As typed.
        schema: What this QEMU speaks; an empty one knows no command, and takes any.

    Raises:
        BadArgument: When it is not a command of this QEMU with arguments that it may have. That one is
            missing is for QEMU to say.
    """
    command, start = split_command(line)
    if not command:
        rest = line[start:].strip()
        return _whole(read_json(rest, "the command")) if rest.startswith("{") else None
    if schema.commands and command not in schema.commands:
        raise bad(f"this QEMU has no command {command!r}", hint=similar(command, schema.commands))
    if line[start:].lstrip().startswith("{"):
        arguments = read_json(line[start:].strip(), "what follows the command")
        if not isinstance(arguments, dict):
            raise bad("the arguments are not a JSON object")
        return Request(command, arguments)
    known = schema.commands.get(command)
    typed = [(pair.key, pair.value) for pair in _all_different(pairs(line, start))]
    return Request(command, _arguments(schema, command, known.arguments if known else "", typed))


def similar(word: str, words: Iterable[str]) -> str:
    """A hint with words that are like this one; "" if there is none."""
    listed = list(words)
    near = [each for each in listed if word and word in each][:_NEAR]
    near = list(dict.fromkeys(near + difflib.get_close_matches(word, listed, n=_NEAR)))[:_NEAR]
    return f"similar: {', '.join(near)}" if near else ""


def below(key: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Split a key after the member that it begins with: "file.driver" is "driver" below "file".

    None if it begins with no member. Their names may contain dots, as those of QEMU's distributors do.
    """
    for name in sorted(names, key=len, reverse=True):
        if key == name or key.startswith(f"{name}."):
            return name, key[len(name) + 1 :]
    return None


def texts(typed: Iterable[Typed]) -> dict[str, object]:
    """The values that were given as text, by key: a tag is among them."""
    return {key: value.text for key, value in typed if isinstance(value, Text)}


def _whole(message: object) -> Request:
    if not isinstance(message, dict) or not isinstance(message.get("execute"), str):
        raise bad('the object has no command: {"execute": "query-status"}')
    more = message.keys() - {"execute", "arguments", "id"}
    arguments = message.get("arguments", {})
    if more or not isinstance(arguments, dict):
        wrong = f"the object has a member {min(more)!r}" if more else "the arguments are not an object"
        raise bad(wrong, hint='its members are "execute" and "arguments"')
    return Request(message["execute"], arguments)


def _arguments(schema: Schema, command: str, name: str, typed: list[Typed]) -> dict[str, object]:
    if command not in _OPEN:
        return _object(schema, name, typed, command)
    names = [member.name for member in schema.members(name)]
    more = [each for each in typed if below(each[0], names) is None]
    return _object(schema, name, [each for each in typed if each not in more], command) | _untyped(more)


def _all_different(given: Iterable[Pair]) -> list[Pair]:
    listed: dict[str, Pair] = {}
    for pair in given:
        if pair.key in listed:
            raise bad(f"{pair.key!r} is given twice")
        listed[pair.key] = pair
    return list(listed.values())


def _object(schema: Schema, name: str, typed: Sequence[Typed], where: str) -> dict[str, object]:
    """The object that the pairs make."""
    kind = schema.type(name)
    if kind.kind not in {"object", "alternate"}:
        return _untyped(typed)
    members = {member.name: member.type for member in schema.members(name, texts(typed))}
    parts: dict[str, list[Typed]] = {}
    for key, value in typed:
        split = below(key, members)
        if split is None:
            raise _no_member(key, members, kind, where)
        parts.setdefault(split[0], []).append((split[1], value))
    return {part: _value(schema, members[part], given, part) for part, given in parts.items()}


def _no_member(key: str, members: Mapping[str, str], kind: SchemaType, where: str) -> Exception:
    first = key.partition(".")[0]
    hint = similar(first, members) or f"it has {', '.join(members)}" if members else "it takes none"
    if kind.tag:
        hint += f"; more of them depend on {kind.tag}=..."
    return bad(f"{where} has no argument {first!r}", hint=hint)


def _value(schema: Schema, name: str, given: Sequence[Typed], where: str) -> object:
    """The value that was given for a member: at its own key, or at keys below it."""
    at_it = [value for key, value in given if not key]
    if at_it and len(given) > 1:
        raise bad(f"{where!r} is given as a whole, and in parts")
    if at_it:
        value = at_it[0]
        return (
            _from_json(schema, name, value.value, where)
            if isinstance(value, Json)
            else _from_text(schema, name, value, where)
        )
    kind = schema.type(name)
    if kind.kind == "alternate":
        kinds = {schema.type(each).kind: each for each in kind.alternatives}
        name = kinds.get("object", kinds.get("array", name))
        kind = schema.type(name)
    match kind.kind:
        case "array":
            return _list(schema, kind.element, given, where)
        case "object":
            return _object(schema, name, given, where)
        case "builtin" | "enum" | "alternate" if kind.json_type != "value":
            raise bad(f"{where!r} is no object: it takes {schema.describe(name)}")
        case _:
            return _untyped(given)


def _list(schema: Schema, element: str, given: Sequence[Typed], where: str) -> list[object]:
    parts: dict[int, list[Typed]] = {}
    for key, value in given:
        index, _, rest = key.partition(".")
        if not index.isdecimal():
            raise bad(
                f"{where!r} is a list: {index!r} is no number",
                hint=f"give {where}.0=..., or JSON: {where}=[...]",
            )
        parts.setdefault(int(index), []).append((rest, value))
    if sorted(parts) != list(range(len(parts))):
        raise bad(f"{where!r} is a list, and its elements are numbered from 0 on")
    return [_value(schema, element, parts[index], f"{where}.{index}") for index in range(len(parts))]


def _untyped(typed: Sequence[Typed]) -> dict[str, object]:
    """An object of which no type is known: dots make objects, and what looks like JSON is JSON."""
    made: dict[str, object] = {}
    for key, value in typed:
        *path, last = key.split(".")
        place = made
        for part in path:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise bad(f"{part!r} is given as a whole, and in parts")
            place = inner
        if last in place:
            raise bad(f"{last!r} is given as a whole, and in parts")
        place[last] = value.value if isinstance(value, Json) else _any(value)
    return made


def _from_json(schema: Schema, name: str, value: object, where: str) -> object:
    wanted = schema.type(name)
    if wanted.kind == "enum" or (wanted.kind == "builtin" and wanted.json_type != "value"):
        raise bad(
            f"{where!r} takes {schema.describe(name)}", hint="put a text that begins with { or [ in quotes"
        )
    return value


def _from_text(schema: Schema, name: str, value: Text, where: str) -> object:
    kind = schema.type(name)
    if kind.kind == "alternate":
        return _one_of(schema, kind, value, where, schema.describe(name))
    found = _fitting(kind, value)
    if found is _NOT:
        hint = similar(value.text, schema.words(name))
        if kind.kind in {"array", "object"}:
            example = f"{where}=[...]" if kind.kind == "array" else f"{where}={{...}}, or {where}.NAME=VALUE"
            hint = f"give {example}"
        raise bad(f"{where!r} takes {schema.describe(name)}, not {value.text!r}", hint=hint)
    return found


def _one_of(schema: Schema, kind: SchemaType, value: Text, where: str, described: str) -> object:
    """A value of the first of an alternate's types that it fits: text last, but first if it is quoted."""
    kinds = [schema.type(each) for each in kind.alternatives]
    kinds.sort(key=lambda each: (each.json_type == "string") is not value.quoted)
    for each in kinds:
        found = _fitting(each, value)
        if found is not _NOT:
            return found
    raise bad(f"{where!r} takes {described}, not {value.text!r}")


_NOT = object()


def _fitting(kind: SchemaType, value: Text) -> object:
    """The value as one of this type; `_NOT` if it is none."""
    text = value.text
    match kind.kind, kind.json_type:
        case "enum", _:
            return text if text in kind.values else _NOT
        case "builtin", "string":
            return text
        case "builtin", "int":
            number = _NUMBER.fullmatch(text)
            if number is None:
                return _NOT
            return int(number[1], 16 if "x" in number[1].lower() else 10) * _UNITS[number[2]]
        case "builtin", "number":
            found = _any(value) if not value.quoted else _NOT
            return found if isinstance(found, int | float) and not isinstance(found, bool) else _NOT
        case "builtin", "boolean":
            return _BOOLEANS.get(text, _NOT)
        case "builtin", "null":
            return None if text == "null" else _NOT
        case (("array" | "object" | "alternate"), _):
            return _NOT
        case _:
            return _any(value)


def _any(value: Text) -> object:
    """A value of which no type is known."""
    if value.quoted:
        return value.text
    try:
        return json.loads(value.text)
    except (ValueError, RecursionError):
        return value.text
