from __future__ import annotations

import asyncio
from typing import Any

from qmpsnap.run.session.event import Event, Subscriptions, read_event
from tests.each import each

STAMP = {"seconds": 10, "microseconds": 250000}


def test_read_event_takes_name_data_and_time():
    event = read_event({"event": "STOP", "data": {"a": 1}, "timestamp": STAMP})
    assert event == Event("STOP", {"a": 1}, 10.25)


@each(
    ("message", "expected"),
    [
        ({"event": "STOP"}, Event("STOP", {}, 0.0)),
        ({"event": "STOP", "data": None, "timestamp": 3}, Event("STOP", {}, 0.0)),
        ({"event": "STOP", "timestamp": {"seconds": "x"}}, Event("STOP", {}, 0.0)),
        ({"event": 5}, None),
    ],
)
def test_read_event_survives_what_the_schema_does_not_promise(message, expected):
    assert read_event(message) == expected


async def test_subscriptions_call_nobody_after_the_block():
    heard: list[Any] = []
    subscriptions = Subscriptions()
    with subscriptions.subscribe(heard.append, lambda: heard.append("lost")):
        subscriptions.deliver(Event("STOP", {}, 0.0))
        subscriptions.deliver_lost()
    await asyncio.sleep(0)
    assert heard == []


async def test_subscriptions_tell_lost_after_the_last_event():
    heard: list[Any] = []
    subscriptions = Subscriptions()
    with subscriptions.subscribe(heard.append, lambda: heard.append("lost")):
        event = Event("STOP", {}, 0.0)
        subscriptions.deliver(event)
        subscriptions.deliver_lost()
        await asyncio.sleep(0)
    assert heard == [event, "lost"]
