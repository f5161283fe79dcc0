"""What all operations on VM state in files share: refusals, and the steps around a migration."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from qmpsnap.errors import Busy, InvalidTarget, MachineDiffers, Unsupported
from qmpsnap.model.graph import Disk
from qmpsnap.model.hints import RUNS_AGAIN, qmp
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import FOR_A_LOAD, Fingerprint, Machine
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.names import fit_name, stem
from qmpsnap.model.option_hints import Hint, Named
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Step
from qmpsnap.model.stream_size import most_bytes, stream_bytes
from qmpsnap.plan.checks.disk import refuse_migrating
from qmpsnap.plan.checks.place import beside_active, refuse_there, usable_directory
from qmpsnap.plan.commands.files import reserve_memory
from qmpsnap.plan.commands.migration import (
    Ending,
    Way,
    await_migration,
    ending,
    pass_file,
    set_capabilities,
    set_parameters,
    uri,
)
from qmpsnap.plan.ownership import ran_here
from qmpsnap.plan.scene import GuestScene

_FAST = 1 << 60  # bytes/s: by default QEMU writes 128 MiB/s, and the guest stands still meanwhile
_BACKGROUND = "background-snapshot"
_MAPPED = "x-ignore-shared"
_MEMORY = Hint(Named("memory"))
_LEAST = 1 << 20

# Run states in which there is no state of a guest to be kept, or none to be trusted.
_NOTHING = {
    "inmigrate": "it is itself waiting for VM state",
    FOR_A_LOAD: "a load of VM state has failed, and its memory cannot be trusted",
    "save-vm": "it is saving VM state now",
    "colo": "it is part of a COLO pair",
    "preconfig": "it is not created yet",
}

# Run states that QEMU leaves by a reset alone (runstate_needs_reset).
_NEEDS_RESET = frozenset({"shutdown", "internal-error"})


def file_number(token: str) -> int:
    """The number by which QEMU knows an open file; it has 31 bits."""
    return int(token, 16) & 0x7FFFFFFF


def way_of(machine: Machine) -> Way:
    """How QEMU gets an open file: one that knows mapped-ram can write to a file by itself, others by fd."""
    return "fdset" if "mapped-ram" in machine.capabilities else "fd"


def refuse_state(machine: Machine, *, loads: bool = False) -> None:
    """Refuse while a migration is running, or when the machine has no VM state that could be trusted.

    Args:
        machine: The machine.
        loads: Whether its memory is replaced, so that what a failed load left does not matter.
    """
    refuse_migrating(machine.guest)
    if machine.status in _NOTHING and not (loads and machine.status == FOR_A_LOAD):
        raise Unsupported(
            f"the machine is in the state {machine.status}: {_NOTHING[machine.status]}",
            feature=f"VM state of a machine in {machine.status}",
            hint="resume it first, or reset it",
        )


def refuse_unsavable(scene: GuestScene, *, migrates: bool, instead: str = "") -> None:
    """Refuse when the machine's VM state cannot be saved, or could not be loaded again.

    Args:
        scene: The machine, and the records of our operations on it.
        migrates: Whether a migration saves it.
        instead: What else the caller could do where the monitor takes no files, for the hint.
    """
    machine = scene.machine
    refuse_state(machine)
    if migrates and machine.status == "postmigrate":
        raise Unsupported(
            "the machine is in the state postmigrate: its VM state was written to a file, and QEMU writes it "
            "again only after the guest has run",
            feature="a second migration",
            hint=f"{RUNS_AGAIN}; qmpsnap checkpoint --mode in-place is possible all the same",
        )
    if migrates:
        need_open_files(machine, instead=instead)
    refuse_asleep(machine)
    if machine.blocked:
        raise Unsupported(
            f"QEMU cannot save the VM state of this machine: {'; '.join(machine.blocked)}",
            feature="VM state of a machine that cannot be migrated",
            hint="unplug or unmount what is named, or take a snapshot of the disks only: qmpsnap snapshot",
        )
    if migrates:
        _refuse_unsettled(scene)


def refuse_asleep(machine: Machine) -> None:
    """Refuse to save or to load the memory of a suspended guest: QEMU does not save that it is suspended."""
    if machine.asleep:
        raise Unsupported(
            "the guest is suspended: QEMU does not save that with its memory, and without it "
            "nothing wakes the guest",
            feature="VM state of a suspended guest",
            hint=f"wake it first: {qmp('system_wakeup')}",
        )


def refuse_no_load(machine: Machine) -> None:
    """Refuse to load memory into a machine that is suspended, or that QEMU resumes only after a reset."""
    if machine.status in _NEEDS_RESET:
        raise Unsupported(
            f"the machine is in the state {machine.status}: QEMU resumes it only after a reset, which would "
            "destroy the loaded state",
            feature=f"revert in run state {machine.status!r}",
            hint=f"reset it first, then revert: {qmp('system_reset')}",
        )
    refuse_asleep(machine)


def _refuse_unsettled(scene: GuestScene) -> None:
    """Refuse while an operation of ours has changed QEMU's migration settings: they would stay so."""
    process = scene.machine.process
    for record in scene.files.records:
        if not isinstance(record, IntentRecord) or not ran_here(record, process):
            continue
        if any(step.kind == "set" for step in record.steps):
            state = "is running" if record.live else "was interrupted"
            raise Busy(
                f"{record.op} {record.id!r} {state}, and uses QEMU's migration settings",
                node="",
                job_id=record.id,
                hint=f"qmpsnap job wait {record.id} finishes it",
            )


def refuse_foreign(fact: MemoryFact, state: KeptState | None = None) -> None:
    """Refuse VM state that may be somebody else's: it would decide what the guest runs."""
    why = fact.foreign(inode=state.inode, user=state.user) if state is not None else fact.foreign()
    if why:
        raise InvalidTarget(
            f"{fact.path} is not loaded: {why}",
            file=fact.path,
            hint="check who made it",
        )


def refuse_other(
    machine: Machine,
    fingerprint: Fingerprint,
    *,
    what: str,
    hint: str = "start QEMU with the same machine as then",
) -> None:
    """Refuse when the machine is not the one whose VM state it is, naming each difference."""
    differences = fingerprint.differences(machine.fingerprint)
    if differences:
        raise MachineDiffers(
            f"{what} belongs to another machine: {'; '.join(differences)}",
            differences=differences,
            hint=hint,
        )


def refuse_changed(differences: list[str], what: str) -> None:
    """Refuse when the disks are not those to which the VM state belongs, naming each difference."""
    if differences:
        raise MachineDiffers(
            f"{what}: {'; '.join(differences)}",
            differences=differences,
            hint="running a guest's memory with other disks would destroy its file systems; boot the guest "
            "instead",
        )


def need_open_files(machine: Machine, *, instead: str = "") -> None:
    """Refuse when the monitor does not take open files, as one that is no unix socket."""
    if not machine.passes_files:
        raise Unsupported(
            "the monitor is no unix socket, so an open file cannot be passed to QEMU",
            feature="VM state over a monitor by TCP",
            hint=f"connect to a unix socket (-s PATH){instead}",
        )


def state_file(disk: Disk, name: str, ending: str) -> str:
    """Where VM state goes by default: beside the active layer, `STEM-of-base.NAME.ENDING`; or refuse."""
    place = beside_active(disk, hint=Hint("name the file of the VM state: ", Named("memory")))
    return posixpath.join(place, fit_name(stem(disk.base.file), f".{name}.{ending}"))


def refuse_memory_place(
    scene: GuestScene,
    file: str,
    *,
    need_bytes: int = 0,
    option: Hint = _MEMORY,
    mapped: bool = False,
) -> None:
    """Refuse when a file of VM state cannot be created under that path, or there may be no room for it.

    Args:
        scene: The machine, and its files.
        file: The file.
        need_bytes: What it may need; 0: as much as the machine has memory.
        option: How the caller names another file; "": the caller cannot.
        mapped: Whether the memory is elsewhere, so that the file holds the devices alone.
    """
    if not file.startswith("/"):
        raise InvalidTarget(f"{file!r} is not an absolute path", file=file)
    refuse_there(scene, file)
    where = usable_directory(scene, file)
    need = need_bytes or (0 if mapped else scene.machine.fingerprint.memory) + _LEAST
    if where.free_bytes < need:
        raise InvalidTarget(
            f"{where.path} has {where.free_bytes} bytes free; the guest's memory may need {need}",
            file=file,
            hint=Hint(
                "free some space there", *((", or choose another file: ", *option.parts) if option else ())
            ),
        )


def undone(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """What takes the steps back, one after the other."""
    return tuple(back for step in steps for back in step.undo)


@dataclass(frozen=True, slots=True)
class Passage:
    """The steps around a migration to or from a file.

    Args:
        machine: The machine.
        file: The file.
        number: What QEMU knows it by.
        background: Whether the guest keeps running while its memory is written.
        mapped: Whether the memory is in a file that QEMU maps, and is not part of the state.
        write: Whether QEMU writes the file.
        inode: Of a file that it reads: that of the one that was inspected.
        fifo: Whether it reads a FIFO.
    """

    machine: Machine
    file: str
    number: int
    background: bool = False
    mapped: bool = False
    write: bool = True
    inode: int = 0
    fifo: bool = False

    @property
    def way(self) -> Way:
        """How QEMU gets the file."""
        return "fd" if self.fifo else way_of(self.machine)

    @property
    def ending(self) -> Ending:
        """How the migration is ended early."""
        return ending(self.way, background=self.background)

    @property
    def may_stop(self) -> bool:
        """Whether it can be cancelled."""
        return self.ending != "wait"

    @property
    def need_bytes(self) -> int:
        """Bytes that the stream of the memory as it is may need."""
        memory = self.machine.fingerprint.memory
        most = memory + _LEAST if self.may_stop else most_bytes(memory)
        return stream_bytes(self.machine.occupied_bytes, at_most_bytes=most)

    @property
    def reserved(self) -> tuple[Step, ...]:
        """The step that reserves disk space, where a failure is as bad as a cancellation; else none.

        It comes before anything is sent, and again when the guest is paused, for what it has used since.
        """
        if self.may_stop:
            return ()
        machine = self.machine
        most = most_bytes(machine.fingerprint.memory)
        process = machine.process if machine.occupied_bytes is not None else ""
        return (reserve_memory(self.file, at_most_bytes=most, process=process),)

    @property
    def switched(self) -> dict[str, bool]:
        """Capabilities that have to be set, as they are now: all but what is wanted is switched off.

        Raises:
            Unsupported: When QEMU does not know one.
        """
        now = self.machine.capabilities
        wanted = dict.fromkeys(now, False) | {
            "events": True,
            _BACKGROUND: self.background,
            _MAPPED: self.mapped,
        }
        if self.background and _BACKGROUND not in now:
            raise Unsupported(
                "this QEMU cannot save memory while the guest runs",
                feature=_BACKGROUND,
                hint="use --mode stop",
            )
        if self.mapped and _MAPPED not in now:
            raise Unsupported("this QEMU cannot leave mapped memory out of its state", feature=_MAPPED)
        return {name: now[name] for name, on in wanted.items() if name in now and now[name] is not on}

    @property
    def capabilities(self) -> tuple[Step, ...]:
        """The step that sets them; none if nothing changes."""
        old = self.switched
        return (set_capabilities({name: not on for name, on in old.items()}, old),) if old else ()

    @property
    def parameters(self) -> tuple[Step, ...]:
        """The step that removes the speed limit."""
        old = self.machine.parameters
        return (set_parameters(dict.fromkeys(old, _FAST), old),) if old else ()

    @property
    def passed(self) -> Step:
        """The step that gives QEMU the file."""
        return pass_file(self.file, self.number, self.way, write=self.write, inode=self.inode, fifo=self.fifo)

    @property
    def uri(self) -> str:
        """What the migration calls it."""
        return uri(self.number, self.way)

    @property
    def before(self) -> tuple[Step, ...]:
        """What comes before the guest is paused."""
        return (await_migration("settled"), *self.sets, self.passed)

    @property
    def sets(self) -> tuple[Step, ...]:
        """The steps that change QEMU's settings."""
        return (*self.capabilities, *self.parameters)

    @property
    def released(self) -> tuple[Step, ...]:
        """What closes our part of the file once the migration has begun; by fd QEMU has none."""
        return self.passed.undo if self.way == "fdset" else ()

    @property
    def after(self) -> tuple[Step, ...]:
        """What restores QEMU's settings."""
        return undone((*self.parameters, *self.capabilities))
