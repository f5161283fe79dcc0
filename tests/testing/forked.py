"""A process that a test forks, which has none of the threads of the first one."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def raised_in_fork(function: Callable[[], object]) -> str:
    """Call a function in a fork, which has 30 s; return the class of what it raises, or "nothing"."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # pytest-timeout has a handler
        signal.alarm(30)
        raised = "nothing"
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - the fork is not to run the rest of the tests
            raised = type(error).__name__
        os.write(write_end, raised.encode())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as pipe:
        return pipe.read()
