from __future__ import annotations

import pytest

from qmpsnap.cli.events import Wanted
from qmpsnap.errors import NotFound
from qmpsnap.run.session import Event
from qmpsnap.testing.server import Emit, Hangup, Return

KNOWN = ["BLOCK_IO_ERROR", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_READY", "SHUTDOWN", "STOP"]
SCHEMA = [
    *({"name": name, "meta-type": "event", "arg-type": "0"} for name in KNOWN),
    {"name": "stop", "meta-type": "command", "arg-type": "0", "ret-type": "0"},
]


@pytest.fixture
def sends(server):
    """Let the server send these events together with its answer to the query for the schema."""

    def send(*actions):
        server.answer("query-qmp-schema", Return(SCHEMA), *actions)

    send()
    return send


def taken(wanted, *names):
    return [name for name in names if wanted.takes(Event(name, {}, 0.0))]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), KNOWN),
        (("STOP",), ["STOP"]),
        (("BLOCK_JOB_*", "SHUTDOWN"), ["BLOCK_JOB_COMPLETED", "BLOCK_JOB_READY", "SHUTDOWN"]),
        (("*ER*", "S[HX]*"), ["BLOCK_IO_ERROR", "SHUTDOWN"]),
        (("STO",), []),
    ],
)
def test_wanted_takes_names_and_patterns(patterns, expected):
    wanted = Wanted(patterns, None)
    assert taken(wanted, *KNOWN) == expected
    assert wanted.seen == len(expected)


def test_wanted_has_enough_after_the_count_and_misses_events_before():
    wanted = Wanted(("STOP",), 2)
    assert (wanted.enough, wanted.missing) == (False, True)
    taken(wanted, "STOP", "SHUTDOWN", "STOP")
    assert (wanted.enough, wanted.missing) == (True, False)


def test_wanted_refuses_a_name_that_never_comes_and_names_similar_ones():
    Wanted(("STOP", "BLOCK_*"), None).check(KNOWN)
    with pytest.raises(NotFound, match="no event 'SHUTDWON'") as caught:
        Wanted(("STOP", "SHUTDWON"), None).check(KNOWN)
    assert caught.value.hint == "did you mean SHUTDOWN?"
    with pytest.raises(NotFound) as caught:
        Wanted(("X*",), None).check(KNOWN)
    assert caught.value.hint == f"its events are {', '.join(KNOWN)}"


def test_events_prints_those_that_are_named_until_there_are_enough(machine, sends):
    sends(Emit("STOP"), *[Emit("SHUTDOWN", {"guest": True}, 1.5)] * 3)
    ended = machine("--json", "events", "shut*", "--count", "2")
    event = '{"version": 1, "event": "SHUTDOWN", "data": {"guest": true}, "timestamp": 1.5}\n'
    assert ended == (0, event * 2, "")


def test_events_counts_within_the_timeout(machine, sends):
    sends(Emit("STOP", {}, 1.5))
    ended = machine("--json", "events", "STOP", "--count", "2", "--timeout", "1")
    event, error = ended.out.splitlines()
    assert (ended.code, '"event": "STOP"' in event) == (4, True)
    assert '"type": "TargetError", "message": "only 1 of 2 events came within 1 s"' in error


def test_events_ends_well_after_the_timeout_when_no_number_was_asked_for(machine, sends):
    assert machine("events", "--timeout", "0.05") == (0, "", "")


def test_events_refuses_a_name_that_this_qemu_does_not_have(machine, sends):
    ended = machine("events", "SHUTDWON")
    assert (ended.code, ended.out) == (3, "")
    assert "did you mean SHUTDOWN?" in ended.err


def test_events_tells_the_end_of_the_link_also_while_it_has_a_limit(machine, sends):
    sends(Emit("STOP"), Hangup())
    ended = machine("events", "STOP", "--count", "2", "--timeout", "5")
    assert ended.code == 5, ended


@pytest.mark.parametrize("words", [("--count", "0"), ("--timeout", "0"), ("--timeout", "x"), ("",)])
def test_events_refuses_limits_that_mean_nothing(machine, words):
    assert machine("events", *words).code == 2
