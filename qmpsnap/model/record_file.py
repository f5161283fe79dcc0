"""Records as their files hold them: written, and read as a whole or not at all.

A record is read by whoever comes later, perhaps as root, and files that it names as made may be
removed: so each field is checked when it is read, and then whether they go together (`record_rules`).
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import cast

from msgspec.structs import replace

from qmpsnap.errors import BadName
from qmpsnap.model.document import dump, load, take
from qmpsnap.model.names import check_name
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.record_rules import check_intent, check_moment

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_ELSEWHERE = ("directory", "live")  # the file's place, and its lock
_RECORD = cast("type[Record]", Record)


def to_json(record: Record) -> str:
    """Return a record as JSON, one line, in ASCII."""
    return dump(record, without=_ELSEWHERE) + "\n"


def from_json(text: str, *, directory: str = "") -> Record:
    """Return the record that `to_json` wrote.

    Raises:
        ValueError: When it is no JSON, of another version, a field is missing or of the wrong shape, or what
            they say does not go together.
    """
    body = load(text)
    record = take(_RECORD, {name: value for name, value in body.items() if name not in _ELSEWHERE})
    check(record)
    match record:
        case IntentRecord():
            for name in IntentRecord.__struct_fields__:  # what is owed is not known by half
                if name not in {*body, *_ELSEWHERE}:
                    raise ValueError(f"{name!r} is missing")
            check_intent(record)
        case MomentRecord():  # older ones have fewer fields
            check_moment(record)
    return replace(record, directory=directory)


def check(record: Record) -> None:
    """Check what becomes part of the record's own file name.

    Raises:
        ValueError: When the id, or a moment's name, is outside its grammar.
    """
    if not _ID.fullmatch(record.id):
        raise ValueError(f"{record.id!r} is no id")
    created = datetime.fromisoformat(record.created)
    if created.tzinfo is None or not 1970 <= created.year < 9999:  # it is compared, and shown in local time
        raise ValueError(f"'created' is {record.created!r}, not a time since 1970 with its zone")
    if isinstance(record, MomentRecord) or record.name:
        try:
            check_name(record.name)
        except BadName as error:
            raise ValueError(error.message) from error
