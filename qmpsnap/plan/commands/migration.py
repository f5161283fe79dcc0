"""A migration to or from a file of VM state. QAPI: migration.json, misc.json.

QEMU gets the open file itself, never a name that it would open, and never a shell's command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.step import Step

Way = Literal["fd", "fdset"]
"""How QEMU gets an open file: by getfd and `fd:` (7.2, and a FIFO), or by add-fd and `file:/dev/fdset/N`."""

Until = Literal["settled", "writing", "saved", "kept", "loaded"]
"""What is waited for.

    settled     the migration before is over, its thread too
    writing     the state of the devices is kept and the pages of memory follow, so that the guest may run on
    saved       all is written by a guest that is paused
    kept        all is written while it ran on; QEMU keeps a later memory than the disks when it had to stop
                the guest a second time, and that is a failure
    loaded      all is read
"""

Ending = Literal["cancel", "cancel-later", "wait"]
"""How a migration that writes is ended early.

    cancel        it is cancelled
    cancel-later  a background snapshot: it is cancelled once its first page is written, since QEMU 10.0 and
                  11.1 close their descriptor 0, whatever that is, when one ends before
    wait          a background snapshot on QEMU 7.2: its end is waited for, since a guest that is running
                  hangs for good when one is cancelled
"""


def ending(way: Way, *, background: bool) -> Ending:
    """How a migration is ended early; QEMU 7.2 is the one that gets no file but by its descriptor."""
    if not background:
        return "cancel"
    return "wait" if way == "fd" else "cancel-later"


def set_capabilities(values: Mapping[str, bool], old: Mapping[str, bool]) -> Step:
    """Set migration capabilities, and back to `old` on rollback. QAPI: migrate-set-capabilities."""
    return replace(_capabilities(values), undo=(_capabilities(old),))


def _capabilities(values: Mapping[str, bool]) -> Step:
    states = [{"capability": name, "state": on} for name, on in values.items()]
    return _setting("migrate-set-capabilities", Frozen(capabilities=states))


def set_parameters(values: Mapping[str, int | str], old: Mapping[str, int | str]) -> Step:
    """Set migration parameters, and back to `old` on rollback. QAPI: migrate-set-parameters."""
    undo = _setting("migrate-set-parameters", Frozen(old))
    return replace(_setting("migrate-set-parameters", Frozen(values)), undo=(undo,))


def _setting(command: str, arguments: Frozen[str, object]) -> Step:
    return Step(on="qmp", command=command, kind="set", arguments=arguments, restores=True, owed=True)


def pass_file(file: str, number: int, way: Way, *, write: bool, inode: int = 0, fifo: bool = False) -> Step:
    """Give QEMU an open file over the monitor. QAPI: getfd, add-fd.

    Args:
        file: The file's path, which only we open.
        number: What QEMU knows it by: `qmpsnap-NUMBER`, or the set's number.
        way: How.
        write: Whether QEMU writes to it.
        inode: Of a file that QEMU reads: that of the one that was inspected.
        fifo: Whether it is a FIFO, from which QEMU reads.
    """
    return Step(
        on="qmp",
        command="getfd" if way == "fd" else "add-fd",
        kind="pass-file",
        arguments=Frozen({"fdname": f"qmpsnap-{number}"})
        if way == "fd"
        else Frozen({"fdset-id": number, "opaque": "qmpsnap"}),
        detail=Frozen(file=file, number=number, write=write, inode=inode, **({"fifo": True} if fifo else {})),
        undo=(release_file(number, way),),
        restores=True,
    )


def release_file(number: int, way: Way) -> Step:
    """Let QEMU close a file that it was given; no error if it has. QAPI: closefd, remove-fd."""
    return Step(
        on="qmp",
        command="closefd" if way == "fd" else "remove-fd",
        kind="release-file",
        arguments=Frozen({"fdname": f"qmpsnap-{number}"}) if way == "fd" else Frozen({"fdset-id": number}),
        detail=Frozen(number=number),
    )


def uri(number: int, way: Way) -> str:
    """The URI of a file that was passed."""
    return f"fd:qmpsnap-{number}" if way == "fd" else f"file:/dev/fdset/{number}"


def migrate(to: str, *, ending: Ending = "cancel") -> Step:
    """Begin to write VM state to a file. QAPI: migrate."""
    return Step(
        on="qmp",
        command="migrate",
        arguments=Frozen(uri=to),
        undo=(migrate_cancel(ending),),
        pauses=True,
    )


def migrate_incoming(source: str) -> Step:
    """Begin to read VM state from a file, in a QEMU that waits for it. QAPI: migrate-incoming."""
    return Step(
        on="qmp",
        command="migrate-incoming",
        arguments=Frozen(uri=source),
        final=True,
        loads=True,
        unseen=True,
    )


def migrate_cancel(ending: Ending) -> Step:
    """End a migration that writes, and return once it has ended. QAPI: migrate_cancel."""
    return Step(on="qmp", command="migrate_cancel", detail=Frozen(ending=ending))


def await_migration(until: Until, *, may_stop: bool = True) -> Step:
    """Wait for a migration. QAPI: MIGRATION, query-migrate.

    Args:
        until: What is waited for.
        may_stop: Whether it may be cancelled meanwhile: QEMU 7.2 then hangs a guest that is running.
    """
    return Step(
        on="wait", command="await-migration", arguments=Frozen(until=until), detail=Frozen(may_stop=may_stop)
    )


def await_closed(file: str) -> Step:
    """Wait until QEMU has closed the file: its thread has ended then, and the kernel has all data.

    A migration that is started before kills QEMU. The lock that `pass_file` leaves on the file goes with
    QEMU's last descriptor of it; no event tells.
    """
    return Step(on="wait", command="await-closed", arguments=Frozen(file=file))
