"""What to do about each error of qmpsnap; what it means is the first paragraph of its class's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qmpsnap import errors
from qmpsnap.model.meaning.entry import Said

_NEXT = "The line that begins with next: says what to do."
_STATE = "`qmpsnap chain` and `qmpsnap jobs` show how things stand."

_ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "QmpsnapError": "Its class says more. `changed` says whether anything was changed.",
        "Refused": _NEXT,
        "NotFound": "`qmpsnap chain` lists disks, layers and nodes; `qmpsnap jobs` jobs; `qmpsnap list` "
        "snapshots.",
        "AmbiguousName": "Give one of the names in `candidates`, or a layer by its path.",
        "NotInChain": "`qmpsnap chain DISK` shows the chain, active layer first; the top must be above the "
        "base.",
        "Busy": "Wait for the job with `qmpsnap job wait ID`, end it with `qmpsnap job cancel ID`, or give "
        "--wait.",
        "TargetExists": "Choose another name. `--use-existing` uses an image that was made for this.",
        "InvalidTarget": "The message has the reason: a missing directory, no room, no permission, or an "
        "image that does not fit.",
        "FileMoved": "Move the image back to its name, or copy what QEMU has open: `qmpsnap mirror --pivot`.",
        "ImageInUse": "Shut the machine down, or work on it while it runs: give its monitor with -s.",
        "StillNeeded": "Stream the image that is named, so that it no longer needs the layer; or give it "
        "up with `--invalidate FILE`.",
        "WouldLose": "Delete what is named first, if you do not need it.",
        "Unsupported": "The message says what is missing; the reference page of the verb lists other ways.",
        "UnsafeImage": "Check where the image comes from. `--allow-dir DIR` allows backing files in "
        "another directory.",
        "BadArgument": "The message names the argument, and the words that are valid.",
        "BadName": "Use letters, digits, '_', '.' and '-', at most 64, beginning with a letter, a digit or "
        "'_'.",
        "ForeignJob": "Make sure that its client does not need the job; then give --foreign.",
        "MachineDiffers": "Start QEMU with the machine and the disks that the VM state was saved with.",
        "TargetError": "The message has QEMU's reason.",
        "ConnectFailed": "Check that QEMU runs and listens there. Its monitor takes one client at a time: "
        "end the other one, or give QEMU a second -qmp.",
        "CommandFailed": "The message has QEMU's reason. What was done before was rolled back.",
        "JobFailed": "The message has QEMU's reason. " + _STATE,
        "MigrationFailed": "The message has QEMU's reason.",
        "Malformed": "Check that the other side is QEMU's QMP monitor, and not its human monitor or a "
        "console.",
        "GuestFailed": "The output of the command is in `output`.",
        "LinkLost": "When QEMU answers again: " + _STATE,
        "GraphMismatch": _STATE + " Find the client that has changed the chains.",
        "Incomplete": "`qmpsnap jobs` shows what is left, and `qmpsnap job wait ID` finishes it.",
        "JobPaused": "Remove the cause, for instance make room; then `qmpsnap job resume ID` and `qmpsnap "
        "job wait ID`.",
        "Detached": "`qmpsnap job wait ID` shows the outcome, and finishes the operation.",
        "Interrupted": "`changed` says whether everything was rolled back.",
    }
)


def _meanings() -> Mapping[str, Said]:
    classes = [
        each
        for each in vars(errors).values()
        if isinstance(each, type) and issubclass(each, errors.QmpsnapError)
    ]
    return MappingProxyType({each.__name__: Said(_text(each), _ADVICE[each.__name__]) for each in classes})


def _text(error: type[errors.QmpsnapError]) -> str:
    first = " ".join((error.__doc__ or "").split("\n\n")[0].split())
    return f"{first.rstrip('.')}. Exit code {error.exit_code}."


ERRORS: Mapping[str, Said] = _meanings()
"""Meaning of each class of error, by its name, in the order of `errors`."""
