"""What this QEMU supports, found by queries, never by its version."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from qmpsnap.errors import Unsupported
from qmpsnap.model.qapi import Reply


class CommandInfo(Reply, frozen=True):
    """QAPI: query-commands."""

    name: str


class SchemaInfoMember(Reply, frozen=True):
    """A member of an object; those of other types have other fields."""

    name: str = ""


class SchemaInfo(Reply, frozen=True):
    """A command, with the name of its arguments' type, an event, or a type. QAPI: query-qmp-schema."""

    name: str
    meta_type: str = ""
    arg_type: str = ""
    members: tuple[SchemaInfoMember, ...] = ()


class Features(Struct, frozen=True):
    """Commands that this QEMU has. QAPI: query-commands (introspect.json)."""

    commands: frozenset[str]

    @property
    def devices(self) -> bool:
        """Whether disks are those of devices, which keep a disk's root open and follow it to an overlay."""
        return "device_add" in self.commands

    @property
    def human_monitor(self) -> bool:
        """Whether it has the human monitor, and with it commands that QMP lacks."""
        return "human-monitor-command" in self.commands

    def need(self, *commands: str) -> None:
        """Refuse unless every command is there.

        Raises:
            Unsupported: When one is missing; `.feature` names it.
        """
        for command in commands:
            if command not in self.commands:
                whose, hint = (
                    ("this QEMU", "a newer QEMU has it")
                    if self.devices
                    else ("this storage daemon", "a newer one may have it, or the QEMU of a running machine")
                )
                raise Unsupported(f"{whose} has no {command!r}", feature=command, hint=hint)


def has_argument(schema: Iterable[SchemaInfo], command: str, argument: str) -> bool:
    """Whether a command has an argument of that name."""
    entries = {entry.name: entry for entry in schema}
    kind = entries.get(entries[command].arg_type) if command in entries else None
    return kind is not None and argument in {member.name for member in kind.members}


def event_names(schema: Iterable[SchemaInfo]) -> list[str]:
    """Names of all events, sorted."""
    return sorted(entry.name for entry in schema if entry.meta_type == "event")
