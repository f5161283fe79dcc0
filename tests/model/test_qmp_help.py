from __future__ import annotations

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.model.qmp_help import help_lines
from tests.each import each
from tests.model.schemas import SCHEMA


@each(
    ("asked", "expected"),
    [
        (
            "query-status",
            [
                "query-status: only reads",
                "returns object",
                "  running: true|false",
                "  status: running|paused",
            ],
        ),
        ("job-cancel", ["job-cancel: may change something, unstable", "  id: string", "returns object"]),
        (
            " blockdev-add ",
            [
                "blockdev-add: may change something",
                "  driver: qcow2|qcow|file",
                "  node-name: string (optional)",
                "  more, which depend on driver: give driver=... with help",
                "returns object",
            ],
        ),
        (
            "blockdev-add driver=file",
            [
                "blockdev-add: may change something",
                "  driver: qcow2|qcow|file",
                "  filename: string",
                "  node-name: string (optional)",
                "returns object",
            ],
        ),
        ("STOP", ["STOP: event"]),
        ("", [" ".join(sorted(SCHEMA.commands))]),
    ],
)
def test_help_lines_describe_a_command_or_an_event(asked, expected):
    assert help_lines(asked, SCHEMA) == expected


def test_help_of_an_unknown_command_names_similar_ones():
    with pytest.raises(BadArgument) as refused:
        help_lines("block-comit", SCHEMA)
    assert refused.value.hint == "similar: block-commit"
