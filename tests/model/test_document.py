from __future__ import annotations

import json

import pytest
from msgspec import Struct

from qmpsnap.model.document import AbsolutePath, Count, Text, dump, load, take
from tests.each import each


class Note(Struct, frozen=True):
    name: Text
    file: AbsolutePath = "/"
    size: Count = 0


def test_dump_writes_ascii_with_the_version_and_load_and_take_read_it() -> None:
    note = Note("n\udcff\n", "/d/\n", 2**70)
    text = dump(note)
    assert text == '{"version": 1, "name": "n\\udcff\\n", "file": "/d/\\n", "size": 1180591620717411303424}'
    assert take(Note, load(text)) == take(Note, load(text.encode())) == note


def test_dump_leaves_out_fields() -> None:
    assert json.loads(dump(Note("n"), without=["file", "size"])) == {"version": 1, "name": "n"}


@each(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "expected an object, got list"),
        ("{}", "version None, only 1 is known"),
        ('{"version": 2}', "version 2, only 1 is known"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff", "can't decode"),
    ],
)
def test_load_says_why_it_is_no_document(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load(text)


@each(
    ("body", "reason"),
    [
        ({}, "Object missing required field `name`"),
        ({"name": 7}, r"Expected `str`, got `int` - at `\$.name`"),
        ({"name": "a\0"}, r"Expected text without NUL - at `\$.name`"),
        ({"name": "a\n\0"}, r"Expected text without NUL - at `\$.name`"),
        ({"name": "a", "file": "b"}, r"Expected absolute path - at `\$.file`"),
        ({"name": "a", "file": "/b\0"}, r"Expected absolute path - at `\$.file`"),
        ({"name": "a", "size": -1}, r"Expected `int` >= 0 - at `\$.size`"),
        ({"name": "a", "size": True}, r"Expected `int`, got `bool` - at `\$.size`"),
        ({"name": "a", "size": 1.0}, r"Expected `int`, got `float` - at `\$.size`"),
    ],
)
def test_take_names_the_field_that_is_wrong(body: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        take(Note, body)
