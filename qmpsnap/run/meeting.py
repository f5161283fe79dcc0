"""Where the operations of several machines wait for each other, so that all go on at one instant."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import anyio

from qmpsnap.model.step import MoveRoot, PutOverlays, Step


class Point(IntEnum):
    """Where an operation waits until every other one has come as far."""

    PAUSE = 0  # everything is created; the guest is about to be paused
    MOVE = 1  # the guest is paused; the disks or the memory are about to become others
    RESUME = 2  # that is done; the guest is about to run again


class Meeting:
    """The operations of a group's machines, each of which is told by its hooks what it is about to do.

    Args:
        names: The machines.

    Attributes:
        off: Set when one has failed, or the caller stops; nobody waits any more then. As `Hooks.cancel` of
            each operation it rolls back those that can be.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.off = anyio.Event()
        self._missing = {point: set(names) for point in Point}
        self._open = {point: anyio.Event() for point in Point}

    async def before(self, name: str, step: Step) -> None:
        """Wait before a step at which the others have to be waited for."""
        point = point_of(step)
        if point is not None:
            self.reach(name, point)
            await self._open[point].wait()

    def reach(self, name: str, point: Point = Point.RESUME) -> None:
        """Take note that a machine has come as far as the point, or does not come to it at all."""
        for earlier in Point:
            if earlier <= point:
                self._missing[earlier].discard(name)
                if not self._missing[earlier]:
                    self._open[earlier].set()

    def call_off(self) -> None:
        """Let nobody wait any more, and stop what can be stopped."""
        self.off.set()
        for opened in self._open.values():
            opened.set()


def point_of(step: Step) -> Point | None:
    """At which point an operation is that is about to do the step; None: at none."""
    if step.command == "stop" or step.kind == "stop-for-load":
        return Point.PAUSE
    if isinstance(step.effect, PutOverlays | MoveRoot) or step.loads:
        return Point.MOVE
    if step.command == "cont":
        return Point.RESUME
    return None
