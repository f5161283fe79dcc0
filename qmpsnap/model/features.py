"""What this QEMU can do, by asking it; never by its version."""

from __future__ import annotations

from dataclasses import dataclass

from qmpsnap.errors import Unsupported

__all__ = ["Features"]


@dataclass(frozen=True, slots=True)
class Features:
    """Commands that this QEMU has. QAPI: query-commands (introspect.json)."""

    commands: frozenset[str]

    def need(self, *commands: str) -> None:
        """Refuse unless every command is there.

        Raises:
            Unsupported: When one is missing; `.feature` names it.
        """
        for command in commands:
            if command not in self.commands:
                raise Unsupported(
                    f"this QEMU has no {command!r}", feature=command, hint="a newer QEMU has it"
                )
