"""Which path leads here to what a process calls by a path of its own.

The process may have another working directory, which `-daemonize` changes after the sockets are made, or see
another file system, as in a container. Blocking.
"""

# Paths stay as the process spells them:
# ruff: noqa: PTH116

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator

from qmpsnap.run.descriptors import same_view, working_directory
from qmpsnap.run.proc import environment


def seen_as(pid: int, path: str) -> Iterator[str]:
    """The absolute paths, as the process sees them, that a path on its command line can mean.

    A relative one counts from its working directory, or from the directory in which it was started.
    """
    if path.startswith("/"):
        yield path
        return
    for directory in dict.fromkeys((working_directory(pid), environment(pid, "PWD"))):
        if directory.startswith("/"):
            yield posixpath.normpath(posixpath.join(directory, path))


def status_of(pid: int, path: str) -> os.stat_result | None:
    """The status of what the process sees at an absolute path; None if there is none, or we may not look."""
    try:
        return os.stat(f"/proc/{pid}/root{path}")
    except (OSError, ValueError):
        return None


def path_here(pid: int, path: str, fits: Callable[[os.stat_result], bool]) -> str:
    """A path that leads here to what the process calls by a path, or "".

    It begins with /proc/PID/root if the process sees another file system, where ours has something else.

    Args:
        pid: The process.
        path: The path, as on its command line.
        fits: Whether it is what is looked for.
    """
    shared = same_view(pid)
    for seen in seen_as(pid, path):
        here, inside = _status(seen), status_of(pid, seen)
        if inside is None:  # a process of another user: what we see has to prove itself
            inside = here
        if inside is None or not fits(inside):
            continue
        if shared or (here is not None and os.path.samestat(here, inside)):
            return seen
        return f"/proc/{pid}/root{seen}"
    return ""


def is_hidden(pid: int, path: str) -> bool:
    """Whether we may not see what a process's path leads to, as in a directory that its user alone enters."""
    for seen in seen_as(pid, path):
        try:
            os.stat(seen)
        except PermissionError:
            return True
        except (OSError, ValueError):
            continue
    return False


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None
