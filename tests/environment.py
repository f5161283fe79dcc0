"""What tests depend on beside the code, set here for all of them: they run alike wherever they are started.

Of the caller's environment only `KEPT` is left, with what says where QEMUs and the guest are; locale,
terminal, time zone, home, umask and signals are ours.
Whoever wants another one in a test sets it there.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from fnmatch import fnmatchcase
from pathlib import Path

KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR", "CI", "PYTEST_*", "COVERAGE_*")
PLACES = ("QMPSNAP_CACHE", "QMPSNAP_GUEST", "QMPSNAP_ACCEL", "QMPSNAP_QEMU")
OURS = {
    "COLUMNS": "80",
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "LINES": "24",
    "TERM": "xterm",
    "TZ": "UTC",
}


def settle() -> None:
    """Set all that; a second time changes nothing."""
    if os.environ.get("HOME") != OURS["HOME"]:  # the cache is found before its home is gone
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qmpsnap"
        os.environ.setdefault("QMPSNAP_CACHE", str(cache))
    for name in set(os.environ) - set(OURS):
        if not any(fnmatchcase(name, pattern) for pattern in (*KEPT, *PLACES)):
            del os.environ[name]
    os.environ.update(OURS)
    time.tzset()
    gc.set_threshold(20_000, 50, 100)  # what is loaded stays, and a test's garbage is small and gone with it
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:  # as nohup and a shell's background leave them
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def freeze() -> None:
    """Keep what was loaded so far out of garbage collection; a second time changes little.

    Every event loop that ends, and every look for what a test leaves, collects garbage, and would walk
    through all that was loaded: of the suite's time that was the larger part.
    """
    gc.collect()
    gc.freeze()
