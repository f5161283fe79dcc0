"""Which path leads here to what a process calls by a path of its own.

The process may have another working directory, which `-daemonize` changes after the sockets are made, or see
another file system, as in a container. Blocking.
"""

# Paths stay as the process spells them, and links of /proc need os:
# ruff: noqa: PTH120, PTH115, PTH116, PTH208

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from typing import Final

from qmpsnap.run.descriptors import same_view, working_directory
from qmpsnap.run.proc import arguments, environment

_BETWEEN_NAMES: Final = re.compile(r'[,=:"]')  # as in -serial file:log, -drive file=a.qcow2,if=none


def seen_as(pid: int, path: str) -> Iterator[str]:
    """The absolute paths, as the process sees them, that a path on its command line can mean.

    A relative one counts from its working directory, or from the directory in which it was started. A shell
    leaves that one in PWD; else a file tells that is open by a relative name, such as that of -pidfile.
    """
    if path.startswith("/"):
        yield path
        return
    given: set[str] = set()
    for directory in _directories(pid):
        if directory.startswith("/") and directory not in given:
            given.add(directory)
            yield posixpath.normpath(posixpath.join(directory, path))


def _directories(pid: int) -> Iterator[str]:
    yield working_directory(pid)
    yield environment(pid, "PWD")
    words = (part for word in arguments(pid) for part in _BETWEEN_NAMES.split(word))
    ends = tuple({f"/{posixpath.normpath(part)}" for part in words if part and not part.startswith("/")})
    for file in _open_paths(pid):
        if file.endswith(ends):
            yield from sorted(file.removesuffix(end) or "/" for end in ends if file.endswith(end))


def _open_paths(pid: int) -> Iterator[str]:
    """The paths of what a process has open, as it sees them; none if we may not look."""
    directory = f"/proc/{pid}/fd"
    try:
        numbers = sorted(os.listdir(directory), key=int)
    except OSError:
        return
    for number in numbers:
        try:
            yield os.readlink(f"{directory}/{number}")
        except OSError:  # closed meanwhile
            continue


def status_of(pid: int, path: str) -> os.stat_result | None:
    """The status of what the process sees at an absolute path; None if there is none, or we may not look."""
    try:
        return os.stat(f"/proc/{pid}/root{path}")
    except (OSError, ValueError):
        return None


def same_directory(pid: int, path: str) -> bool:
    """Whether the directory of an absolute path is for the process what it is for us."""
    directory = os.path.dirname(path)
    here, inside = _status(directory), status_of(pid, directory)
    return here is not None and inside is not None and os.path.samestat(here, inside)


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
