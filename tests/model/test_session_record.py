from __future__ import annotations

import json

import pytest

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.session_record import read_record

FIRST = {"qmpsnap": "record", "version": 1, "at": 1.5}
GREETING = {"QMP": {"capabilities": ["oob"]}}


def line(side, message):
    return {"time": 0.5, "at": 1.5, "from": side, "message": message}


def record(*lines, end="\n"):
    return ("\n".join(map(json.dumps, [FIRST, *lines])) + end).encode()


ASKED = line("client", {"execute": "query-status", "id": "1"})
ANSWERED = line("qemu", {"return": {}, "id": "1"})
GREETED = line("qemu", GREETING)


def test_read_record_gives_each_session_from_its_greeting_on():
    late = line("qemu", {"event": "STOP"})
    found = read_record(record(late, GREETED, ASKED, ANSWERED, GREETED))
    assert [[entry.message for entry in session] for session in found.sessions] == [
        [GREETING, ASKED["message"], ANSWERED["message"]],
        [GREETING],
    ]
    assert [entry.side for entry in found.sessions[0]] == ["qemu", "client", "qemu"]
    assert not found.cut


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (record(GREETED, ASKED), 2),
        (record(GREETED, ASKED, ANSWERED, end=""), 2),
        (record(GREETED, ASKED, ANSWERED) + b'{"time": 0.', 3),
    ],
    ids=["no reply", "no newline", "half a line"],
)
def test_read_record_leaves_out_what_is_cut(data, count):
    found = read_record(data)
    assert found.cut
    assert len(found.sessions[0]) == count


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a record"),
        (b"\n", "not a record"),
        (b"\xff\xfe\n", "not a record"),
        (b'{"qmpsnap": "record", "version": 2}\n', "not a record"),
        (b'{"QMP": {}}\n', "not a record"),
        (record(), "holds no session"),
        (record(ASKED), "holds no session"),
        (record(GREETED, {"from": "client"}), "line 3: .*message"),
        (record(GREETED, line("nobody", {})), "line 3: .*nobody"),
        (record(GREETED, line("client", [])), "line 3: "),
        (record(GREETED) + b"no json\n" + record(), "line 3: "),
        (record(GREETED) + b'{"from":"qemu","message":{"a":' + b"[" * 100_000 + b"\n", "line 3: "),
    ],
    ids=range(12),
)
def test_read_record_refuses_what_is_no_record_and_names_the_line(data, why):
    with pytest.raises(InvalidTarget, match=why):
        read_record(data, file="r")
