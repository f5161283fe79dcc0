"""Events of a QEMU, and their subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from msgspec import Struct

from qmpsnap.model.frozen import Frozen


class Event(Struct, frozen=True):
    """One event of QEMU.

    Attributes:
        name: As in the schema: STOP, JOB_STATUS_CHANGE.
        data: Its data; empty when it has none.
        timestamp: When it happened, in seconds since 1970 by the clock of QEMU's host.
    """

    name: str
    data: Mapping[str, object]
    timestamp: float

    def to_json(self) -> dict[str, object]:
        """The event as `events --json` prints it."""
        return {"event": self.name, "data": dict(self.data), "timestamp": self.timestamp}


def read_event(message: Mapping[str, object]) -> Event | None:
    """Parse an event from the wire; None when it does not fit the schema."""
    name, data, stamp = (message.get(key) for key in ("event", "data", "timestamp"))
    if not isinstance(name, str):
        return None
    seconds = 0.0
    if isinstance(stamp, dict):
        with suppress(KeyError, TypeError):
            seconds = stamp["seconds"] + stamp["microseconds"] / 1e6
    return Event(name, Frozen(data if isinstance(data, dict) else {}), seconds)


class Subscriptions:
    """The subscribers to a session's events."""

    def __init__(self) -> None:
        self._all: list[_Subscription] = []

    @contextmanager
    def subscribe(self, sink: Callable[[Event], None], lost: Callable[[], None] | None) -> Iterator[None]:
        """Call both while the block lasts."""
        subscription = _Subscription(sink, lost)
        self._all.append(subscription)
        try:
            yield
        finally:
            subscription.active = False
            self._all.remove(subscription)

    def deliver(self, event: Event) -> None:
        """Have the loop call each sink next.

        They are not called directly: this is qemu.qmp's reader, and an exception in a sink would end the
        link. A reply that follows the event wakes its waiter through the same queue, hence later.
        """
        loop = asyncio.get_running_loop()
        for subscription in self._all:
            loop.call_soon(subscription.deliver, event)

    def deliver_lost(self) -> None:
        """Have the loop notify each sink, after the last event, that the link was lost."""
        loop = asyncio.get_running_loop()
        for subscription in self._all:
            loop.call_soon(subscription.deliver_lost)


class _Subscription:
    """One subscriber, until it unsubscribes."""

    def __init__(self, sink: Callable[[Event], None], lost: Callable[[], None] | None) -> None:
        self.active = True
        self._sink = sink
        self._lost = lost

    def deliver(self, event: Event) -> None:
        if self.active:
            self._sink(event)

    def deliver_lost(self) -> None:
        if self.active and self._lost is not None:
            self._lost()
