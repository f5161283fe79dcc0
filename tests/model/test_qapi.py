from __future__ import annotations

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.qapi import Reply, heard, read
from tests.each import each


class Medium(Reply, frozen=True):
    node_name: str
    ro: bool


class Device(Reply, frozen=True):
    device: str = ""
    inserted: Medium | None = None


def test_read_takes_the_members_of_the_struct_and_ignores_others() -> None:
    reply = [{"device": "d", "inserted": {"node-name": "n", "ro": True, "iops": 0}, "locked": False}]
    assert read(list[Device], reply, "query-block") == [Device("d", Medium("n", ro=True))]


@each(
    ("reply", "reason"),
    [
        (None, "Expected `array`, got `null`"),
        ([7], r"Expected `object`, got `int` - at `\$\[0\]`"),
        ([{"inserted": {"node-name": "n"}}], r"missing required field `ro` - at `\$\[0\]\.inserted`"),
        (
            [{"inserted": {"node-name": "n", "ro": 1}}],
            r"Expected `bool`, got `int` - at `\$\[0\]\.inserted\.ro`",
        ),
    ],
)
def test_read_names_the_command_and_the_member_that_is_wrong(reply: object, reason: str) -> None:
    with pytest.raises(
        Malformed, match=f"^QEMU's answer to query-block does not have the expected shape: .*{reason}"
    ):
        read(list[Device], reply, "query-block")


@each(
    ("data", "event"),
    [
        ({"node-name": "n", "ro": False, "more": 1}, Medium("n", ro=False)),
        ({"node-name": "n"}, None),
        ({"node-name": 7, "ro": False}, None),
        ({}, None),
    ],
)
def test_heard_is_none_where_the_data_are_not_of_the_schema(
    data: dict[str, object], event: Medium | None
) -> None:
    assert heard(Medium, data) == event
