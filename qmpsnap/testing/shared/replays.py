"""The records that a test replays: each is served on a socket, in a thread, until the test ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from qmpsnap.run.scratch import scratch
from qmpsnap.testing.replay import Replay, replay
from qmpsnap.testing.shared.calls import Calls


class Replays:
    """Serves records; made by `replays`.

    Args:
        folder: Directory of records with a relative path.
        place: Directory for the sockets.
        calls: Calls into the event loop that serves them.
        stack: Ends them.
    """

    def __init__(self, folder: Path, place: Path, calls: Calls, stack: ExitStack) -> None:
        self._folder = folder
        self._place = place
        self._calls = calls
        self._stack = stack
        self._served: list[Replay] = []

    def serve(self, record: str | os.PathLike[str]) -> str:
        """Serve a record; return the path of the socket.

        Args:
            record: Its path.

        Raises:
            InvalidTarget: When it cannot be read, is not a record, or has an invalid line.
            Unsupported: In a process that a test has forked.
        """
        path = self._place / f"{len(self._served)}.sock"
        served = self._calls.portal.wrap_async_context_manager(replay(self._folder / record, path))
        self._served.append(self._stack.enter_context(served))
        return str(path)

    @property
    def refused(self) -> list[str]:
        """The commands that were refused, each with what was expected in its place."""
        return [refusal for server in self._served for refusal in server.refused]


@contextmanager
def replays(folder: Path) -> Iterator[Replays]:
    """Serve records inside the block."""
    with ExitStack() as stack:
        place = stack.enter_context(scratch())
        portal = stack.enter_context(start_blocking_portal())
        yield Replays(folder, Path(place), Calls(portal), stack)
