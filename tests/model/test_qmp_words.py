from __future__ import annotations

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.model.qmp_words import Json, Text, pairs, split_command
from tests.each import each


@each(
    ("line", "expected"),
    [
        ("", ("", 0)),
        ("  # no command", ("", 2)),
        (" stop", ("stop", 5)),
        ("stop ", ("stop", 4)),
        ('stop{"a": 1}', ("stop", 4)),
        ('{"execute": "stop"}', ("", 0)),
    ],
)
def test_split_command_gives_the_first_word_and_where_it_ends(line, expected):
    assert split_command(line) == expected


@each(
    ("line", "value"),
    [
        ("k=v", Text("v")),
        ("k=", Text("")),
        ("k=''", Text("", quoted=True)),
        ("k='a b'", Text("a b", quoted=True)),
        ("k='a \"b\" \\'", Text('a "b" \\', quoted=True)),
        (r'k="a \"b\" c"', Text('a "b" c', quoted=True)),
        (r"k=a\ b", Text("a b", quoted=True)),
        ("k=it''s", Text("its", quoted=True)),
        ("k=a=b,c=d", Text("a=b,c=d")),
        ("k=/d/ü.qcow2", Text("/d/ü.qcow2")),
        ('k={"a": [1, "} x"]}', Json({"a": [1, "} x"]})),
        ("k=[ ]", Json([])),
    ],
)
def test_pairs_reads_a_value(line, value):
    (pair,) = pairs(f"  {line} ", 0)
    assert (pair.key, pair.value, pair.end) == ("k", value, 2 + len(line))


def test_pairs_reads_several_from_an_offset_on():
    assert [(pair.key, pair.value) for pair in pairs("stop a.b=1\tc={}", 4)] == [
        ("a.b", Text("1")),
        ("c", Json({})),
    ]


@each(
    ("line", "message"),
    [
        ("a", "'a' is not KEY=VALUE"),
        ("=a", "'=a' is not KEY=VALUE"),
        ("k='a", "the quotes in the value of 'k' are not closed"),
        ('k="a\\"', "the quotes in the value of 'k' are not closed"),
        ("k={", "the value of 'k' is not JSON"),
        ("k={}x", "the value of 'k' goes on after it has ended"),
        ("k=[" * 1 + "[" * 100_000, "the value of 'k' is not JSON"),
    ],
)
def test_pairs_refuses_a_word_that_is_none(line, message):
    with pytest.raises(BadArgument) as refused:
        list(pairs(line, 0))
    assert message in refused.value.message
