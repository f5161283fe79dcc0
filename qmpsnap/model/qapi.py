"""QEMU's replies and events as structs of the members that we read; raw dicts end here.

A struct and its members have the names of QEMU's schema (qapi/*.json). A member that the schema marks
optional has a default; a member that we do not read has no field, and is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from msgspec import Struct, ValidationError, convert

from qmpsnap.errors import Malformed

T = TypeVar("T")


class Reply(Struct, frozen=True, rename="kebab"):
    """An object of QEMU's: the schema's `some-member` is the field `some_member`."""


def read(kind: type[T], reply: object, command: str) -> T:
    """Convert the reply to a command to the type that its schema promises.

    Raises:
        Malformed: When it is something else; the message names the command and the member.
    """
    try:
        return convert(reply, kind)
    except ValidationError as error:
        raise Malformed(f"QEMU's answer to {command} does not have the expected shape: {error}") from error


def heard(kind: type[T], data: Mapping[str, object]) -> T | None:
    """Convert the data of an event; None if it is not what the schema promises.

    A malformed event is ignored, because nothing depends on a single event.
    """
    try:
        return convert(data, kind)
    except ValidationError:
        return None
