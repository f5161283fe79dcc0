"""Every error of qmpsnap, and what each says about your disks.

    QmpsnapError                      .changed  .hint  .exit_code
    +- Refused            (exit 3)    nothing of the VM was changed, nothing of ours is left
    |  +- NotFound                 no disk, node, layer or job of that name
    |  +- AmbiguousName               the name fits two; .candidates
    |  +- NotInChain                  the layer is not in the chain, or on the wrong side of the other
    |  +- Busy                    a job holds the node; .node .job_id
    |  +- TargetExists                a file of that name is there already; .file
    |  +- InvalidTarget              the target cannot be made or does not fit; .file
    |  +- FileMoved                   a name leads no more to the file that QEMU has open; .file .path
    |  +- StillNeeded                 another image stands on what would change; .by
    |  +- WouldLose                   internal snapshots or persistent bitmaps would be lost; .what
    |  +- Unsupported                 this QEMU or this machine cannot; .feature
    |  +- UnsafeImage                 an image header that no tool should follow; .file
    |  +- BadArgument                 a word, path or number that no call takes; .parameter .value .allowed
    |  +- BadName                     a name outside the grammar; .name
    |  +- ForeignJob                  a job that is not ours; .job_id
    |  +- MachineDiffers              VM state of another machine, or of other disks; .differences
    +- TargetError        (exit 4)    the other side said no, or cannot be reached
    |  +- ConnectFailed               no QMP there, or no greeting in time
    |  +- CommandFailed               QEMU's error reply; .command .arguments .qmp_class .desc
    |  +- JobFailed                   the job ended with an error; .job_id .error
    |  +- MigrationFailed             VM state could not be written or read; .error
    |  +- Malformed                   an answer that is not QMP, or not what the schema promises
    |  +- GuestFailed                 a test's guest: a command failed, or no answer; .script .status .output
    +- LinkLost           (exit 5)    the connection went; .step was in flight; the outcome is unknown
    +- GraphMismatch      (exit 6)    it succeeded, the graph is not the predicted one; .expected .found
    +- Incomplete         (exit 7)    stopped between steps; .done .remaining
       +- JobPaused                   an I/O error paused the job; .job_id .reason
       +- Detached                    the caller left; the job runs on; .job_id
    +- Interrupted        (exit 130)  the caller asked to stop, and what could be is undone

`changed` speaks of the chains and of the bytes of every layer. A commit that failed has written
into its base: the guest reads what it read, `changed` is YES, and `invalid` names each layer that
no longer holds its moment.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

__all__ = [
    "AmbiguousName",
    "BadArgument",
    "BadName",
    "Busy",
    "Changed",
    "CommandFailed",
    "ConnectFailed",
    "Detached",
    "FileMoved",
    "ForeignJob",
    "GraphMismatch",
    "GuestFailed",
    "Incomplete",
    "Interrupted",
    "InvalidTarget",
    "JobFailed",
    "JobPaused",
    "LinkLost",
    "MachineDiffers",
    "Malformed",
    "MigrationFailed",
    "NotFound",
    "NotInChain",
    "QmpsnapError",
    "Refused",
    "StillNeeded",
    "TargetError",
    "TargetExists",
    "UnsafeImage",
    "Unsupported",
    "WouldLose",
]  # fmt: skip


class Changed(Enum):
    """Whether anything changed, in the chains or in the bytes of any layer."""

    NO = "no"
    YES = "yes"
    UNKNOWN = "unknown"


class _Facts(TypedDict, total=False):
    """What every error may say besides its message."""

    changed: Changed
    hint: str
    invalid: Sequence[str]
    left: Sequence[str]


class QmpsnapError(Exception):
    """Base of all errors; says whether anything changed and what to do next.

    All of them can be copied and pickled, with every attribute. A traceback shows the hint.

    Attributes:
        changed: What became of the chains and of the layers' bytes.
        hint: What to do next, or "".
        invalid: Files that no longer hold their moment.
        left: Files, nodes or jobs that stay behind, each with what removes it.
        exit_code: What the command line ends with.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        changed: Changed = Changed.NO,
        hint: str = "",
        invalid: Sequence[str] = (),
        left: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.changed = changed
        self.hint = hint
        self.invalid = tuple(invalid)
        self.left = tuple(left)

    @property
    def hint(self) -> str:
        """What to do next, or ""; one of the exception's notes, so that a traceback shows it."""
        return self._hint

    @hint.setter
    def hint(self, hint: str) -> None:
        old = _NEXT + getattr(self, "_hint", "")
        notes = [note for note in getattr(self, "__notes__", ()) if note != old]
        self._hint = hint
        self.__notes__ = [*notes, _NEXT + hint] if hint else notes

    def to_json(self) -> dict[str, object]:
        """The error as `--json` prints it: its class, what every error has, and what this one has besides."""
        first = {
            "type": type(self).__name__,
            "message": self.message,
            "changed": self.changed.value,
            "hint": self.hint,
            "invalid": list(self.invalid),
            "left": list(self.left),
        }
        more = {key: value for key, value in vars(self).items() if key[0] != "_" and key not in first}
        if not isinstance(more.get("value"), str | int | float | None):
            more["value"] = repr(more["value"])
        return first | more

    def __reduce__(self) -> tuple[object, ...]:
        # The default calls the class with the message alone, and most take more.
        return _blank, (type(self), *self.args), dict(vars(self))


_NEXT = "next: "


def _blank(kind: type[QmpsnapError], *args: object) -> QmpsnapError:
    """An error before its attributes are given back to it, out of a pickle or a copy."""
    return kind.__new__(kind, *args)


class Refused(QmpsnapError):
    """Nothing of the VM was changed, and nothing of ours is left."""

    exit_code = 3


class NotFound(Refused):
    """There is no disk, node, layer or job of that name."""


class AmbiguousName(Refused):
    """The name fits more than one thing; `candidates` lists them."""

    def __init__(self, message: str, *, candidates: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.candidates = tuple(candidates)


class NotInChain(Refused):
    """The layer is not in the disk's chain, or stands on the wrong side of the other."""


class Busy(Refused):
    """A job holds the node."""

    def __init__(self, message: str, *, node: str, job_id: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.node = node
        self.job_id = job_id


class TargetExists(Refused):
    """A file of that name is there already; it was not touched."""

    def __init__(self, message: str, *, file: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file


class InvalidTarget(Refused):
    """The target cannot be made there, or does not fit."""

    def __init__(self, message: str, *, file: str, hint: str = "", left: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint, left=left)
        self.file = file


class FileMoved(Refused):
    """A name leads no more to the file that QEMU has open.

    Attributes:
        file: The name, as QEMU's graph has it.
        path: Where the file that QEMU has open lies now; "" when it has no name, or none is known.
    """

    def __init__(self, message: str, *, file: str, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.path = path


class StillNeeded(Refused):
    """Another image stands on a layer that would change; `by` names each."""

    def __init__(self, message: str, *, by: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.by = tuple(by)


class WouldLose(Refused):
    """Internal snapshots or persistent bitmaps would be lost; `what` names each."""

    def __init__(self, message: str, *, what: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.what = tuple(what)


class Unsupported(Refused):
    """This QEMU, or this machine's layout, cannot do it."""

    def __init__(self, message: str, *, feature: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.feature = feature


class UnsafeImage(Refused):
    """An image header that no tool should be let follow."""

    def __init__(self, message: str, *, file: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file


class BadArgument(Refused, ValueError):
    """An argument that no call takes: a wrong word, type, path or number; nothing was sent.

    Attributes:
        parameter: What the argument is called.
        value: What was given.
        allowed: Every word that is taken, where that is a closed choice.
    """

    def __init__(
        self, message: str, *, parameter: str, value: object, allowed: Sequence[str] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter
        self.value = value
        self.allowed = tuple(allowed)


class BadName(Refused, ValueError):
    """A name outside the grammar."""

    def __init__(self, message: str, *, name: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class ForeignJob(Refused):
    """A job that is not ours, and nobody said that it may be touched."""

    def __init__(self, message: str, *, job_id: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.job_id = job_id


class MachineDiffers(Refused):
    """VM state is another machine's, or its disks have changed since; `differences` names each."""

    def __init__(self, message: str, *, differences: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.differences = tuple(differences)


class TargetError(QmpsnapError):
    """The other side said no, or cannot be reached."""

    exit_code = 4


class ConnectFailed(TargetError):
    """There is no QMP at that address, or no greeting came in time."""


class CommandFailed(TargetError):
    """QEMU answered a command with an error."""

    def __init__(
        self,
        message: str,
        *,
        command: str,
        arguments: Mapping[str, object],
        qmp_class: str,
        desc: str,
        **facts: Unpack[_Facts],
    ) -> None:
        super().__init__(message, **facts)
        self.command = command
        self.arguments = dict(arguments)
        self.qmp_class = qmp_class
        self.desc = desc


class JobFailed(TargetError):
    """A job ended with an error, or was cancelled by somebody else."""

    def __init__(self, message: str, *, job_id: str, error: str, **facts: Unpack[_Facts]) -> None:
        super().__init__(message, **facts)
        self.job_id = job_id
        self.error = error


class MigrationFailed(TargetError):
    """VM state could not be written, or not be read; `error` is QEMU's text."""

    def __init__(self, message: str, *, error: str, **facts: Unpack[_Facts]) -> None:
        super().__init__(message, **facts)
        self.error = error


class Malformed(TargetError):
    """An answer that is not QMP, or not what the schema promises."""


class GuestFailed(TargetError):
    """A test's guest failed a command, or does not answer; `status` is None for the latter."""

    def __init__(self, message: str, *, script: str, status: int | None = None, output: str = "") -> None:
        super().__init__(message, changed=Changed.UNKNOWN)
        self.script = script
        self.status = status
        self.output = output


class LinkLost(QmpsnapError):
    """The connection went while something was under way; `step` was in flight."""

    exit_code = 5

    def __init__(self, message: str, *, step: str = "", **facts: Unpack[_Facts]) -> None:
        facts.setdefault("changed", Changed.UNKNOWN)
        super().__init__(message, **facts)
        self.step = step


class GraphMismatch(QmpsnapError):
    """The command succeeded, and the graph is not the predicted one.

    Raised with `changed` NO before the first step, when the graph moved since it was planned on.
    """

    exit_code = 6

    def __init__(
        self,
        message: str,
        *,
        expected: Mapping[str, Sequence[str]],
        found: Mapping[str, Sequence[str]],
        **facts: Unpack[_Facts],
    ) -> None:
        facts.setdefault("changed", Changed.YES)
        super().__init__(message, **facts)
        self.expected = {disk: tuple(files) for disk, files in expected.items()}
        self.found = {disk: tuple(files) for disk, files in found.items()}


class Incomplete(QmpsnapError):
    """Stopped between steps; `done` and `remaining` say where."""

    exit_code = 7

    def __init__(
        self,
        message: str,
        *,
        done: Sequence[str] = (),
        remaining: Sequence[str] = (),
        **facts: Unpack[_Facts],
    ) -> None:
        facts.setdefault("changed", Changed.YES)
        super().__init__(message, **facts)
        self.done = tuple(done)
        self.remaining = tuple(remaining)


class JobPaused(Incomplete):
    """An I/O error paused the job, as its error policy asked; it waits to be resumed or cancelled."""

    def __init__(
        self, message: str, *, job_id: str, reason: str, hint: str, invalid: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint, invalid=invalid)
        self.job_id = job_id
        self.reason = reason


class Detached(Incomplete):
    """The caller left as it asked to; the job runs on and can be waited for."""

    def __init__(self, message: str, *, job_id: str, hint: str, invalid: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint, invalid=invalid)
        self.job_id = job_id


class Interrupted(QmpsnapError):
    """The caller asked to stop; what could be is undone, and `changed` says whether that was all."""

    exit_code = 130
