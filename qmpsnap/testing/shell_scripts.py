"""What the shells in a guest have in common. Pure: text of POSIX shells."""

from __future__ import annotations

from typing import Final

__all__ = ["KILL_ALL"]

# busybox's timeout kills one process only, coreutils' its process group. So every process of a script is
# known by its environment. Three times, for those that are started meanwhile. The function shares its
# variables with the script that calls it.
KILL_ALL: Final = r"""
kill_all() {
    for round in 1 2 3; do
        for environ in $(grep -lsz "^QMPSNAP_RUN=$1$" /proc/[0-9]*/environ); do
            environ=${environ%/environ}
            kill -KILL ${environ#/proc/}
        done
    done > /dev/null 2>&1
}
"""
"""Defines `kill_all ID`, which kills all processes that have QMPSNAP_RUN=ID in their environment."""
