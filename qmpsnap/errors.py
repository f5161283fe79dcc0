"""Every error of qmpsnap, and what each says about your disks.

    QmpsnapError                      .changed  .hint  .exit_code
    +- Refused            (exit 3)    nothing of the VM was changed, nothing of ours is left
    |  +- NotFound                    no disk, node, layer or job of that name
    |  +- AmbiguousName               more than one thing of that name; .candidates
    |  +- NotInChain                  the layer is not in the chain, or on the wrong side of the other one
    |  +- Busy                        a job holds the node; .node .job_id
    |  +- TargetExists                a file of that name exists already; .file
    |  +- InvalidTarget               the target cannot be created or does not fit; .file
    |  +- FileMoved                   a name no longer leads to the file that QEMU has open; .file .path
    |  +- ImageInUse                  a process writes to the image of a machine that is off; .file .pid
    |  +- StillNeeded                 another image is backed by what would change; .by
    |  +- WouldLose                   internal snapshots or persistent bitmaps would be lost; .what
    |  +- Unsupported                 this QEMU or this machine cannot do it; .feature
    |  +- UnsafeImage                 an image header that must not be followed; .file
    |  +- BadArgument                 an invalid word, path or number; .parameter .value .allowed
    |  +- BadName                     an invalid snapshot name; .name
    |  +- ForeignJob                  a job of another client; .job_id
    |  +- MachineDiffers              VM state of another machine, or of other disks; .differences
    +- TargetError        (exit 4)    QEMU refused, failed, or cannot be reached
    |  +- ConnectFailed               no QMP there, or no greeting in time
    |  +- CommandFailed               QEMU's error reply; .command .arguments .qmp_class .desc
    |  +- JobFailed                   the job ended with an error; .job_id .error
    |  +- MigrationFailed             VM state could not be saved or loaded; .error
    |  +- Malformed                   an answer that is not QMP, or does not match the schema
    |  +- GuestFailed                 a command in a test's guest failed; .script .status .output
    +- LinkLost           (exit 5)    the connection was lost; .step was in flight; the outcome is unknown
    +- GraphMismatch      (exit 6)    it succeeded, but the graph is not as predicted; .expected .found
    +- Incomplete         (exit 7)    stopped between steps; .done .remaining
       +- JobPaused                   an I/O error paused the job; .job_id .reason
       +- Detached                    the caller detached; the job keeps running; .job_id
    +- Interrupted        (exit 130)  the caller asked to stop; everything that could be was rolled back

`changed` covers the chains and the bytes of every layer. A commit that failed has written into its
base: the guest's data is unchanged, but `changed` is YES, and `invalid` names each layer that no
longer holds its moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Unpack

from qmpsnap.base_error import CHAINS_CHANGED, Facts
from qmpsnap.base_error import Changed as Changed  # noqa: PLC0414 - exported here
from qmpsnap.base_error import QmpsnapError as QmpsnapError  # noqa: PLC0414 - exported here


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
    """The layer is not in the disk's chain, or is on the wrong side of the other one."""


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
    """The target cannot be created there, or does not fit."""

    def __init__(self, message: str, *, file: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file


class FileMoved(Refused):
    """A name no longer leads to the file that QEMU has open.

    Attributes:
        file: The name, as QEMU's graph has it.
        path: Where the file that QEMU has open is now; "" when it has no name, or none is known.
    """

    def __init__(self, message: str, *, file: str, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.path = path


class ImageInUse(Refused):
    """A process or a loop device has an image open for writing, so its machine is not off.

    Attributes:
        file: The image.
        pid: The process; None if it is not known, because of another user or a container for instance.
        program: The name of the program, or the loop device; "" if it is not known.
        user: The user that the process runs as; "" if it is not known.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str,
        pid: int | None = None,
        program: str = "",
        user: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.pid = pid
        self.program = program
        self.user = user


class StillNeeded(Refused):
    """Another image is backed by a layer that would change; `by` names each."""

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
    """An image header that must not be followed, because it leads to other files."""

    def __init__(self, message: str, *, file: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.file = file


class BadArgument(Refused, ValueError):
    """An invalid argument: a wrong word, type, path or number; nothing was sent.

    Attributes:
        parameter: The argument's name.
        value: What was given.
        allowed: The valid words, if it is a closed choice.
    """

    def __init__(
        self, message: str, *, parameter: str, value: object, allowed: Sequence[str] = (), hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter
        self.value = value
        self.allowed = tuple(allowed)


class BadName(Refused, ValueError):
    """A name that does not match the grammar of snapshot names."""

    def __init__(self, message: str, *, name: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class ForeignJob(Refused):
    """A job of another client, and the caller did not allow acting on it."""

    def __init__(self, message: str, *, job_id: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.job_id = job_id


class MachineDiffers(Refused):
    """VM state belongs to another machine, or its disks have changed since; `differences` names each."""

    def __init__(self, message: str, *, differences: Sequence[str], hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.differences = tuple(differences)


class TargetError(QmpsnapError):
    """QEMU refused, failed, or cannot be reached."""

    exit_code = 4


class ConnectFailed(TargetError):
    """There is no QMP server at that address, or no greeting came in time."""


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
        **facts: Unpack[Facts],
    ) -> None:
        super().__init__(message, **facts)
        self.command = command
        self.arguments = dict(arguments)
        self.qmp_class = qmp_class
        self.desc = desc


class JobFailed(TargetError):
    """A job ended with an error, or was cancelled by another client."""

    def __init__(self, message: str, *, job_id: str, error: str, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.job_id = job_id
        self.error = error


class MigrationFailed(TargetError):
    """VM state could not be saved or loaded; `error` is QEMU's text."""

    def __init__(self, message: str, *, error: str, **facts: Unpack[Facts]) -> None:
        super().__init__(message, **facts)
        self.error = error


class Malformed(TargetError):
    """An answer that is not QMP, or does not match the schema."""


class GuestFailed(TargetError):
    """A command in a test's guest failed, or the guest does not answer (`status` is None then)."""

    tells_change: ClassVar[bool] = False  # what a guest does to its own disks is no news

    def __init__(self, message: str, *, script: str, status: int | None = None, output: str = "") -> None:
        super().__init__(message, changed=Changed.UNKNOWN)
        self.script = script
        self.status = status
        self.output = output


class LinkLost(QmpsnapError):
    """The connection was lost while `step` was in flight."""

    exit_code = 5

    def __init__(self, message: str, *, step: str = "", **facts: Unpack[Facts]) -> None:
        facts.setdefault("changed", Changed.UNKNOWN)
        super().__init__(message, **facts)
        self.step = step


class GraphMismatch(QmpsnapError):
    """The command succeeded, but the graph is not the predicted one.

    Raised with `changed` NO before the first step, when the graph has changed since the plan was made.
    """

    exit_code = 6

    def __init__(
        self,
        message: str,
        *,
        expected: Mapping[str, Sequence[str]],
        found: Mapping[str, Sequence[str]],
        **facts: Unpack[Facts],
    ) -> None:
        facts.setdefault("changed", Changed.YES)
        super().__init__(message, **facts)
        self.expected = {disk: tuple(files) for disk, files in expected.items()}
        self.found = {disk: tuple(files) for disk, files in found.items()}

    def details(self) -> tuple[str, ...]:
        """The expected chains, those that were found, and what the other errors list."""
        return (
            *(f"expected {disk}: {', '.join(files)}" for disk, files in self.expected.items()),
            *(f"found    {disk}: {', '.join(files)}" for disk, files in self.found.items()),
            *super().details(),
        )

    def _outcome_of_change(self, *, moved: bool | None) -> str:  # noqa: ARG002 - as in the other classes
        return CHAINS_CHANGED


class Incomplete(QmpsnapError):
    """Stopped between steps; `done` and `remaining` say where."""

    exit_code = 7

    def __init__(
        self,
        message: str,
        *,
        done: Sequence[str] = (),
        remaining: Sequence[str] = (),
        **facts: Unpack[Facts],
    ) -> None:
        facts.setdefault("changed", Changed.YES)
        super().__init__(message, **facts)
        self.done = tuple(done)
        self.remaining = tuple(remaining)

    def details(self) -> tuple[str, ...]:
        """What is not done yet, and what the other errors list."""
        return (*(f"not done yet: {step}" for step in self.remaining), *super().details())

    def _outcome_of_change(self, *, moved: bool | None) -> str:  # noqa: ARG002 - as in the other classes
        return CHAINS_CHANGED


class JobPaused(Incomplete):
    """An I/O error paused the job, as its error policy says; it can be resumed or cancelled."""

    def __init__(self, message: str, *, job_id: str, reason: str, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.job_id = job_id
        self.reason = reason


class Detached(Incomplete):
    """The caller detached on request; the job keeps running and can be waited for."""

    def __init__(self, message: str, *, job_id: str, hint: str, invalid: Sequence[str] = ()) -> None:
        super().__init__(message, hint=hint, invalid=invalid)
        self.job_id = job_id

    def _outcome_of_change(self, *, moved: bool | None) -> str:  # noqa: ARG002 - as in the other classes
        return "the job writes into layers until it ends"


class Interrupted(QmpsnapError):
    """The caller asked to stop; what could be was rolled back; `changed` says whether that was all."""

    exit_code = 130

    def _outcome_of_change(self, *, moved: bool | None) -> str:
        if self.invalid:
            return super()._outcome_of_change(moved=moved)
        if self.left:
            return "the chains were changed; what is left behind is listed above"
        if moved is False:
            return "the chains are unchanged; a layer was written to, but its contents are the same"
        return CHAINS_CHANGED
