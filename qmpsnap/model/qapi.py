"""What QEMU says, as structs of the members that we read: raw replies and events end here.

A struct and its members are called as in QEMU's schema (qapi/*.json). A member that the schema marks
optional has a default; one that we do not read has no field, and is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct, ValidationError, convert

from qmpsnap.errors import Malformed

T = TypeVar("T")


class Reply(Struct, frozen=True, rename="kebab"):
    """An object of QEMU's: what the schema calls `some-member` is the field `some_member`."""


def read(kind: type[T], reply: object, command: str) -> T:
    """Return the reply to a command as what its schema promises.

    Raises:
        Malformed: When it is something else; the text names the command and the member.
    """
    try:
        return convert(reply, kind)
    except ValidationError as error:
        raise Malformed(f"QEMU's answer to {command} has not the expected shape: {error}") from error


def heard(kind: type[T], data: Mapping[str, object]) -> T | None:
    """Return the data of an event; None when it is not what the schema promises.

    Nobody relies on one event alone, so nobody need be told.
    """
    try:
        return convert(data, kind)
    except ValidationError:
        return None
