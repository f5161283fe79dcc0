"""What a QMP command takes and returns, in lines of text, from the schema of QEMU; it has no descriptions."""

from __future__ import annotations

from collections.abc import Mapping

from qmpsnap.errors import BadArgument
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.qapi_schema import Schema, SchemaCommand, SchemaMember
from qmpsnap.model.qmp_line import similar, texts
from qmpsnap.model.qmp_reads import only_reads
from qmpsnap.model.qmp_words import pairs, split_command


def help_lines(asked: str, schema: Schema) -> list[str]:
    """Describe a command or an event; without a name, list all commands.

    Args:
        asked: Its name, and KEY=VALUE of arguments that decide which others there are, such as driver=qcow2.
        schema: What this QEMU speaks.

    Raises:
        BadArgument: When there is no such command or event, or what follows is not KEY=VALUE.
    """
    name, end = split_command(asked)
    if not name:
        return [" ".join(sorted(schema.commands))]
    given = texts((pair.key, pair.value) for pair in pairs(asked, end))
    command = schema.commands.get(name)
    if command is not None:
        lines = [_title(name, command, "only reads" if only_reads(name, {}) else "may change something")]
        lines += _members(schema, command.arguments, given)
        returned = schema.describe(command.returns)
        inner = schema.type(command.returns)
        return [*lines, f"returns {returned}", *_members(schema, inner.element or command.returns)]
    event = schema.events.get(name)
    if event is not None:
        return [_title(name, event, "event"), *_members(schema, event.arguments, given)]
    hint = similar(name, (*schema.commands, *schema.events))
    raise BadArgument(
        f"this QEMU has no command or event {name!r}", parameter="command", value=name, hint=hint
    )


def _title(name: str, entry: SchemaCommand, what: str) -> str:
    return f"{name}: {', '.join([what, *entry.features])}"


def _members(schema: Schema, name: str, given: Mapping[str, object] = Frozen()) -> list[str]:
    members = schema.members(name, given)
    kind = schema.type(name)
    lines = [f"  {_row(schema, member)}" for member in sorted(members, key=lambda member: member.optional)]
    if kind.tag and kind.tag not in given:
        lines.append(f"  more, which depend on {kind.tag}: give {kind.tag}=... with help")
    return lines


def _row(schema: Schema, member: SchemaMember) -> str:
    remarks = ", ".join([*(["optional"] if member.optional else []), *member.features])
    return f"{member.name}: {schema.describe(member.type)}" + (f" ({remarks})" if remarks else "")
