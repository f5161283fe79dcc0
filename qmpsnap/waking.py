"""The hook that is called once a guest runs again with the memory of a checkpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from qmpsnap.errors import Incomplete, QmpsnapError
from qmpsnap.model.arguments import refuse
from qmpsnap.one_machine import M

_AGAIN: Final = "its clock and its random seed are those of the checkpoint; call the hook again"
ENDED: Final = "the machine has ended; mend the hook, and start it again"
"""A hint for a machine that ends when its hook fails."""

Waker = Callable[[M], Awaitable[None]]
"""Called with a machine whose guest was reverted or cloned; corrects its clock, random seed and the like."""


def check_wake(wake: object) -> None:
    """Refuse anything but a function or None; called before anything is sent."""
    if wake is not None and not callable(wake):
        refuse("wake", wake, "give an async function that takes a qmpsnap.VM")


async def woken(vm: M, wake: Waker[M] | None, *, what: str, hint: str = _AGAIN) -> None:
    """Call the hook, if there is one and the guest runs; a paused guest could not answer it.

    Args:
        vm: The machine.
        wake: The hook.
        what: What was done before, as in "the revert to 'clean'".
        hint: What to do then.

    Raises:
        Incomplete: When the hook raises an error, which is the cause; a cancellation is no error.
    """
    if wake is None or not (await vm.status()).running:
        return
    try:
        await wake(vm)
    except Exception as error:
        why = str(error)
        if not isinstance(error, QmpsnapError):
            why = f"{type(error).__name__}: {why}" if why else type(error).__name__
        raise Incomplete(
            f"{what} is done and the guest runs, but waking it failed: {why}",
            done=[what],
            remaining=["wake"],
            hint=hint,
        ) from error
