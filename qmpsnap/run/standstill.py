"""How long and how often the guest was paused: by QEMU's own clock, from STOP to RESUME."""

from __future__ import annotations

from qmpsnap.run.session import Event


class Stops:
    """Records STOP and RESUME; pass it every event of an operation."""

    def __init__(self) -> None:
        self._stopped: float | None = None
        self._closed: list[float] = []
        self._count = 0

    def note(self, event: Event) -> None:
        """Follow STOP and RESUME; ignore other events."""
        if event.name == "STOP":
            self._count += 1
            if self._stopped is None:
                self._stopped = event.timestamp
        elif event.name == "RESUME" and self._stopped is not None:
            self._closed.append(max(0.0, event.timestamp - self._stopped))
            self._stopped = None

    @property
    def seconds(self) -> float | None:
        """Seconds for which the guest was paused and has since resumed; None if it was never paused."""
        return sum(self._closed) if self._closed else None

    @property
    def count(self) -> int:
        """How often it was paused."""
        return self._count
