"""Exit codes of the command line, and classes of the errors that QEMU replies with."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap.model.meaning.entry import Said

EXIT_CODES: Mapping[int, Said] = MappingProxyType(
    {
        0: Said("Done."),
        1: Said(
            "The operation is done, but its result could not be written to stdout; or it is a bug.",
            "stderr has the result, or the bug. `qmpsnap chain` and `qmpsnap jobs` show how things stand.",
        ),
        2: Said("The command line is wrong. Nothing was sent.", "`qmpsnap VERB --help` shows what is right."),
        3: Said(
            "Refused: nothing of the machine was changed, and no file, node or job was left behind.",
            "The line that begins with next: says what to do.",
        ),
        4: Said(
            "QEMU replied with an error, a job failed, or QEMU cannot be reached. What was done was rolled "
            "back; the message says if something could not be.",
            "The message has QEMU's reason.",
        ),
        5: Said(
            "The connection to QEMU was lost, or QEMU did not answer. What was in flight may have been done.",
            "When QEMU answers again, `qmpsnap chain` and `qmpsnap jobs` show the outcome; `qmpsnap job "
            "wait ID` finishes an operation.",
        ),
        6: Said(
            "The commands succeeded, but the chains are not as predicted: another client may have changed "
            "them.",
            "`qmpsnap chain` shows them. Find the other client before you go on.",
        ),
        7: Said(
            "Stopped half-way: what has been done and what remains was printed.",
            "`qmpsnap jobs` shows what is left; `qmpsnap job wait ID` finishes it.",
        ),
        8: Said(
            "The doctor found a trouble, or several.",
            "Each is printed with the command that mends it; run that, then `qmpsnap doctor` again.",
        ),
        130: Said(
            "Interrupted by Ctrl-C or SIGTERM. What could be rolled back was; a job that was left running "
            "is named.",
            "`qmpsnap job wait ID` finishes a job that was left.",
        ),
    }
)
"""Meaning of each exit code."""

QMP_CLASSES: Mapping[str, Said] = MappingProxyType(
    {
        "GenericError": Said(
            "QEMU's error of no particular class.", "The text beside it says what is wrong."
        ),
        "CommandNotFound": Said(
            "This QEMU has no such command, or not in its present state (as before x-exit-preconfig).",
            "`qmpsnap shell` completes the commands that it has.",
        ),
        "DeviceNotFound": Said(
            "There is no device, node or drive of that name.",
            "`qmpsnap chain` lists the disks and nodes. Most commands take a node-name, and only some a "
            "qdev id.",
        ),
        "DeviceNotActive": Said(
            "There is no such job, or the device has none at the moment.",
            "`qmpsnap jobs` lists the jobs.",
        ),
        "KVMMissingCap": Said("KVM on this host lacks what the command needs."),
    }
)
"""Meaning of each class of QEMU's errors. QAPI: QapiErrorClass (error.json)."""
