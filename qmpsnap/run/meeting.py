"""Lets the operations of several machines wait for each other, so that all continue at the same instant."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import anyio

from qmpsnap.model.step import MoveRoot, PutOverlays, Step


class Point(IntEnum):
    """A point at which an operation waits until all others have reached it."""

    PAUSE = 0  # everything is created; the guest is about to be paused
    MOVE = 1  # the guest is paused; its disks or its memory are about to be replaced
    RESUME = 2  # they have been replaced; the guest is about to run again


class Meeting:
    """The operations of a group's machines; the hooks of each call `before` before each step.

    Args:
        names: The machines.

    Attributes:
        off: Set when an operation has failed, or the caller stops; then none waits any more. It is the
            `Hooks.cancel` of each operation, which rolls back if it still can.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.off = anyio.Event()
        self._missing = {point: set(names) for point in Point}
        self._open = {point: anyio.Event() for point in Point}

    async def before(self, name: str, step: Step) -> None:
        """Wait for the other machines if the step comes after a point."""
        point = point_of(step)
        if point is not None:
            self.reach(name, point)
            await self._open[point].wait()

    def reach(self, name: str, point: Point = Point.RESUME) -> None:
        """Note that a machine has reached the point, or will never reach it."""
        for earlier in Point:
            if earlier <= point:
                self._missing[earlier].discard(name)
                if not self._missing[earlier]:
                    self._open[earlier].set()

    def call_off(self) -> None:
        """End all waits, and stop the operations that can still be stopped."""
        self.off.set()
        for event in self._open.values():
            event.set()


def point_of(step: Step) -> Point | None:
    """Return the point that an operation has reached when it is about to do the step; None: no point."""
    if step.command == "stop" or step.kind == "stop-for-load":
        return Point.PAUSE
    if isinstance(step.effect, PutOverlays | MoveRoot) or step.loads:
        return Point.MOVE
    if step.command == "cont":
        return Point.RESUME
    return None
