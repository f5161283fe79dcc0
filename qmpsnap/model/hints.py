"""What to do next: about an error that QEMU gives in words, and by which command."""

from __future__ import annotations

import shlex

__all__ = ["command", "hint_for", "quoted"]

_GIVEN_UP = "where VM state was saved or is awaited, QEMU has given its images up until the guest runs: cont"

# Parts of QEMU's messages (util/osdep.c, block.c, block/file-posix.c) and what helps then.
_HINTS = (
    (
        '" lock',
        "another process has the file open, or another node of this QEMU; find it with: fuser -v FILE",
    ),
    (
        "Permission denied",
        "look at owner, mode and label of the file and its directories: QEMU's user may not open it",
    ),
    ("Read-only file system", "the file system is mounted read-only"),
    ("No space left on device", "make room there, or say another place"),
    ("No such file or directory", "QEMU looks where it runs: is the path the same there?"),
    ("is busy", "look who holds it: qmpsnap jobs"),
    ("Need a root block node", "a node without a use stands on the disk's root; free it with blockdev-del"),
    ("Inactive '", _GIVEN_UP),
    ("does not support internal snapshots", f"if it is a qcow2 image: {_GIVEN_UP}"),
    ("Too many open files", "raise QEMU's limit of open files"),
)


def hint_for(description: str) -> str:
    """What to do next about QEMU's error text, or "" when it says enough itself."""
    return next((hint for words, hint in _HINTS if words in description), "")


def command(*words: str) -> str:
    """A command line of ours that can be typed as it is: the verb and what follows it, quoted for a shell."""
    return shlex.join(("qmpsnap", *words))


def quoted(word: str) -> str:
    """One word of a command line, quoted for a shell where it has to be: a disk may be called `device[0]`."""
    return shlex.quote(word)
