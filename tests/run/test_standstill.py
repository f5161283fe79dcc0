from __future__ import annotations

from qmpsnap.run.session import Event
from qmpsnap.run.standstill import Stops
from tests.each import each


def noted(*events: tuple[str, float]) -> Stops:
    stops = Stops()
    for name, at in events:
        stops.note(Event(name, {}, at))
    return stops


@each(
    ("events", "seconds", "count"),
    [
        ((), None, 0),
        ((("STOP", 1.0),), None, 1),
        ((("RESUME", 1.0),), None, 0),
        ((("STOP", 1.0), ("RESUME", 1.25)), 0.25, 1),
        ((("STOP", 1.0), ("RESUME", 1.25), ("STOP", 2.0), ("RESUME", 2.5)), 0.75, 2),
        ((("STOP", 1.0), ("STOP", 1.5), ("RESUME", 2.0)), 1.0, 2),
        ((("STOP", 1.0), ("RESUME", 1.25), ("STOP", 2.0)), 0.25, 2),
        ((("STOP", 2.0), ("RESUME", 1.0)), 0.0, 1),
        ((("RESET", 1.0), ("STOP", 2.0), ("MIGRATION", 2.1), ("RESUME", 2.5)), 0.5, 1),
    ],
)
def test_stops_are_counted_by_qemus_own_clock(
    events: tuple[tuple[str, float], ...], seconds: float | None, count: int
) -> None:
    stops = noted(*events)
    assert (stops.seconds, stops.count) == (seconds, count)
