"""Hints: what to do about an error message of QEMU's, and the command for it."""

from __future__ import annotations

import json
import shlex

LOAD_FAILED = (
    "revert again, or reset the guest before you resume it: qmpsnap qmp system_reset, then qmpsnap cont"
)
NO_DISK_CHANGES = (
    "no disk can change, so leave the machine out of a group; a checkpoint, a template or a fork needs a "
    "writable disk, however small; to keep the memory of a running machine: qmpsnap save FILE"
)
LOAD_STATE = "load it: qmpsnap restore FILE, or qmpsnap revert NAME --into-incoming"
RUNS_AGAIN = (
    "qmpsnap cont --after-migration resumes the guest; the saved state no longer matches its disks then"
)
ONE_MORE_MONITOR = "give QEMU one more monitor at its next start: -qmp unix:PATH,server=on,wait=off"

_GIVEN_UP = (
    "QEMU has deactivated its images: if VM state was saved, qmpsnap cont --after-migration resumes "
    "the guest; if QEMU waits for VM state, load that first"
)


def command(*words: str) -> str:
    """A qmpsnap command line, quoted for a shell: the verb and what follows it."""
    return shlex.join(("qmpsnap", *words))


def qmp_words(name: str, /, **arguments: object) -> tuple[str, ...]:
    """The words of a command line that sends a QMP command as it is.

    Args:
        name: The command.
        arguments: Its arguments, `_` for each `-` in their names.
    """
    spelled = {key.replace("_", "-"): value for key, value in arguments.items()}
    return ("qmpsnap", "qmp", name, *([json.dumps(spelled, ensure_ascii=False)] if spelled else []))


def qmp(name: str, /, **arguments: object) -> str:
    """The same as one command line, quoted for a shell."""
    return shlex.join(qmp_words(name, **arguments))


def frees(node: str) -> str:
    """A command line that removes an unused node."""
    return qmp("blockdev-del", node_name=node)


def quoted(word: str) -> str:
    """One word of a command line, quoted for a shell where it has to be: a disk may be called `device[0]`."""
    return shlex.quote(word)


_LOCK = (
    '" lock',
    "another process has the file open, or another node of this QEMU; find it with: fuser -v FILE",
)
_OWN_MEMORY = (
    "a launcher has to leave out the machine's own memory object if its Start has a memory: start.arguments "
    "has the object that replaces it"
)
_OWN_ADDRESS = "another process has that address: a second QEMU of a machine needs another one, or none"
_PLUGGED = (
    "a template has no memory that was plugged in: start the machine with as much memory (-m) instead, and "
    "take another checkpoint"
)

# Parts of QEMU's messages (util/osdep.c, block.c, block/file-posix.c) and what helps then.
_HINTS = (
    _LOCK,
    (
        "Permission denied",
        "check owner, mode and label of the file and its directories: QEMU's user is not allowed to open it",
    ),
    ("Read-only file system", "the file system is mounted read-only"),
    ("No space left on device", "free some space there, or choose another place"),
    ("No such file or directory", "QEMU looks in its own file system: is the path the same there?"),
    ("is busy", "see which job holds it: qmpsnap jobs"),
    (
        "Need a root block node",
        f"an unused node is on top of the disk's root; remove it with: {frees('NODE')}",
    ),
    ("Inactive '", _GIVEN_UP),
    ("does not support internal snapshots", f"if it is a qcow2 image: {_GIVEN_UP}"),
    ("Too many open files", "raise QEMU's limit on open files"),
)

# The same for the messages of a QEMU that does not start (qom/object.c, util/qemu-sockets.c, net/slirp.c,
# hw/core/machine.c).
_START_HINTS = (
    _LOCK,
    ("' to object (type 'container')", _OWN_MEMORY),  # /objects
    ("' for object", _OWN_MEMORY),
    ("Address already in use", _OWN_ADDRESS),
    ("host forwarding rule", _OWN_ADDRESS),
    ("memory size does not match the size of the memory backend", _PLUGGED),
    ("initrd is too large", "give the machine more memory"),
    ("cannot set up guest memory", "the host has less memory than that: give the machine less"),
)


def is_lock_refused(description: str) -> bool:
    """Whether an error message of QEMU's says that it did not get the lock of an image."""
    return "Failed to get" in description and '" lock' in description


def hint_for(description: str) -> str:
    """What to do about this error message of QEMU's, or ""."""
    return next((hint for words, hint in _HINTS if words in description), "")


def start_hint(last_words: str) -> str:
    """What to do about the last words of a QEMU that has not started, or ""."""
    return next((hint for words, hint in _START_HINTS if words in last_words), "")
