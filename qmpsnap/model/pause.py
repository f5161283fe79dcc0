"""Why a guest is not running, and what lets it run."""

from __future__ import annotations

from collections.abc import Mapping

from qmpsnap.model.frozen import Frozen, FrozenStruct


class Pause(FrozenStruct, frozen=True):
    """Why a guest is not running.

    Attributes:
        state: QEMU's run state. QAPI: RunState (run-state.json).
        cause: Why it is not running, as a sentence or two.
        advice: What lets it run, or what to look at first; "" when nothing is known.
        failed: In the state io-error, the disks of which a request failed, each with "nospace" or "failed".
            QAPI: BlockDeviceIoStatus (block-core.json).
    """

    state: str
    cause: str
    advice: str = ""
    failed: Mapping[str, str] = Frozen()
