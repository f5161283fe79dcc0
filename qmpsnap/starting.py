"""The start of a second QEMU by a launcher, which is the caller's code and may do anything."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

from qmpsnap.errors import ConnectFailed
from qmpsnap.model.arguments import refuse
from qmpsnap.model.hints import is_lock_refused
from qmpsnap.model.start import Start
from qmpsnap.one_machine import M, Starter

_WANTED: Final = "it has to return an asynchronous context manager that gives the new machine"
_NOT_WAITING: Final = (
    "QEMU opens an image that another one is writing to only if it waits for VM state: the launcher has to "
    "append the arguments of the Start ([..., *start.arguments])"
)


@asynccontextmanager
async def another(launcher: Starter[M], start: Start) -> AsyncIterator[M]:
    """Start a QEMU by a launcher; it ends with the block.

    What the block raises is raised, even if the launcher suppresses it.

    Args:
        launcher: Starts the QEMU.
        start: How it differs from the first one.

    Raises:
        BadArgument: When the launcher returns something else than a context manager, or that gives something
            else than a machine.
        Exception: What the launcher raises.
    """
    opened = launcher(start)
    if not isinstance(opened, AbstractAsyncContextManager):
        if inspect.iscoroutine(opened):
            opened.close()
        refuse("launcher", launcher, f"it has returned {opened!r}; {_WANTED}")
    failure: BaseException | None = None
    entered = False
    try:
        async with opened as vm:
            entered = True
            try:
                if not hasattr(vm, "do"):
                    refuse("launcher", launcher, f"its context manager gives {vm!r}; {_WANTED}")
                yield vm
            except BaseException as error:
                failure = error
                raise
    except ConnectFailed as error:
        if not entered and start.incoming and is_lock_refused(error.message):
            error.hint = _NOT_WAITING
        raise
    if failure is not None:
        raise failure
