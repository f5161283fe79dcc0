"""The hook that is called once a guest runs again with memory of another time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from qmpsnap.errors import Incomplete, QmpsnapError
from qmpsnap.model.arguments import refuse
from qmpsnap.one_machine import M

Waker = Callable[[M], Awaitable[None]]
"""Called with a machine whose guest has gone back in time, or is one of several now; sets what is stale."""


def check_wake(wake: object) -> None:
    """Refuse anything but a function or None, before anything is sent."""
    if wake is not None and not callable(wake):
        refuse("wake", wake, "give an async function that takes a qmpsnap.VM")


async def woken(vm: M, wake: Waker[M] | None, *, what: str) -> None:
    """Call the hook, if there is one and the guest runs; a paused guest could not answer it.

    Args:
        vm: The machine.
        wake: The hook.
        what: What was done before, and stays, as in "the revert to 'clean'".

    Raises:
        Incomplete: When the hook raises one of qmpsnap's errors; any other error of it is raised as it is.
    """
    if wake is None or not (await vm.status()).running:
        return
    try:
        await wake(vm)
    except QmpsnapError as error:
        raise Incomplete(
            f"{what} is done and the guest runs, but waking it failed: {error.message}",
            done=[what],
            remaining=["wake"],
            hint="its clock and its random seed are those of the checkpoint; call the hook again",
        ) from error
