"""What a machine is beyond its disks: its run state, and what VM state has to match."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from qmpsnap.model.document import Count, Text
from qmpsnap.model.frozen import Frozen, FrozenStruct

FOR_A_LOAD = "restore-vm"
"""The run state of a guest that was running before a load that failed. QAPI: RunState (run-state.json)."""

# The run state before VM state has arrived: nothing can be saved, anything can be loaded.
_INCOMING = "inmigrate"

ASLEEP = "suspended"
_NOT_MIGRATING = frozenset({"none", "completed", "failed", "cancelled"})

# The run state in which a migration ends. QEMU may say before that the migration is "completed".
_ENDING = "finish-migrate"


class Fingerprint(FrozenStruct, frozen=True):
    """What must be equal where VM state is loaded, and which QEMU saved it.

    Attributes:
        machine: QOM type of the machine, which includes the machine's version.
        memory: Bytes of RAM.
        cpus: QOM type of each CPU.
        devices: QOM type of each device, by its id or its place.
        disks: Bytes that the guest sees of each disk, by the disk's name.
        qemu: Version of QEMU; reported, but not compared, because another version may work.
        ram: Name that the RAM has in VM state; "" if it is in several blocks, or was not recorded.
    """

    machine: Text
    memory: Count
    cpus: tuple[Text, ...]
    devices: Mapping[str, Text]
    disks: Mapping[str, Count]
    qemu: Text = ""
    ram: Text = ""

    def differences(self, now: Fingerprint) -> tuple[str, ...]:
        """How another machine differs from this one, a phrase for each difference; none: the state fits."""
        differences = []
        if now.machine != self.machine:
            differences.append(f"the machine is {now.machine}, not {self.machine}")
        if now.memory != self.memory:
            differences.append(f"it has {now.memory} bytes of memory, not {self.memory}")
        if now.ram != self.ram and now.ram and self.ram:
            differences.append(f"its memory is called {now.ram!r}, not {self.ram!r}")
        if now.cpus != self.cpus:
            differences.append(f"it has {_count(now.cpus)}, not {_count(self.cpus)}")
        differences += _differing("device", self.devices, now.devices)
        differences += _differing("disk", self.disks, now.disks)
        return tuple(differences)


class Status(Struct, frozen=True):
    """Whether the guest is running, and the last migration.

    Attributes:
        state: QEMU's run state, such as "running", "paused", "io-error". QAPI: RunState (run-state.json).
        running: Whether the guest's CPUs are running.
        migration: Status of the last migration, including one that saved VM state to a file; "none" if there
            was none. QAPI: MigrationStatus (migration.json).
    """

    state: str
    running: bool
    migration: str = "none"

    @property
    def incoming(self) -> bool:
        """Whether it is waiting for VM state."""
        return self.state == _INCOMING

    @property
    def migrating(self) -> bool:
        """Whether a migration is running, or has not left the guest in its last run state yet."""
        return self.migration not in _NOT_MIGRATING or self.state == _ENDING

    @property
    def phase(self) -> str:
        """How far a migration that is running has come, as QEMU calls it."""
        return self.state if self.state == _ENDING else self.migration

    def to_json(self) -> dict[str, object]:
        """The same as `--json` prints it."""
        return {"status": self.state, "running": self.running, "migration": self.migration}


class Device(Struct, frozen=True):
    """The device that a disk is plugged into.

    Attributes:
        path: Its QOM path.
        kind: Its QOM type, as in "virtio-blk-device".
    """

    path: str
    kind: str


class Machine(Struct, frozen=True):
    """A machine as it is now.

    Attributes:
        status: QEMU's run state. QAPI: RunState (run-state.json).
        running: Whether the guest's CPUs are running.
        migration: Status of the last migration; "none" if there was none.
        capabilities: Migration capabilities, by name.
        parameters: Migration parameters, by name; only those that we set.
        fingerprint: The machine that VM state has to fit.
        devices: The device of each disk, by the disk's name.
        passes_files: Whether the monitor takes open files, as a unix socket does.
        process: Identifies this QEMU process; no other has the same. "" if not known.
        exported: Names of the nodes that QEMU exports (NBD, vhost-user, FUSE).
        blocked: Why QEMU cannot migrate the machine, in its words, as far as it knows before it tries.
        iothreads: Whether devices may do I/O in threads of their own.
        occupied_bytes: Bytes of QEMU's memory, of which the guest's is a part, that can hold anything but
            zeros, at most; None: not known.
        emulated: Whether the CPUs run without KVM: QEMU then translates the guest's code, as far as we know.
    """

    status: str
    running: bool
    migration: str
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, int | str]
    fingerprint: Fingerprint
    devices: Mapping[str, Device] = Frozen()
    passes_files: bool = True
    process: str = ""
    exported: frozenset[str] = frozenset()
    blocked: tuple[str, ...] = ()
    emulated: bool = False
    iothreads: bool = False
    occupied_bytes: int | None = None

    @property
    def asleep(self) -> bool:
        """Whether the guest is suspended (ACPI S3) until it is woken."""
        return self.status == ASLEEP

    @property
    def unpaused(self) -> bool:
        """Whether nobody has paused the guest: it is running, or suspended."""
        return self.running or self.asleep

    @property
    def runs_after_load(self) -> bool:
        """Whether the guest is resumed when VM state is loaded: it is running, or was until a load failed."""
        return self.unpaused or self.status == FOR_A_LOAD

    def plugged(self, disk: str) -> Device | None:
        """The device that was plugged in for a disk, which may contain the disk's own, or None."""
        device = self.devices.get(disk)
        if device is None:
            return None
        _, _, place, name, *inner = (*device.path.split("/"), "", "")
        known = name if place == "peripheral" else f"/{name}"
        kind = self.fingerprint.devices.get(known) if any(inner) and place.startswith("peripheral") else None
        return Device(f"/machine/{place}/{name}", kind) if kind else device

    @property
    def guest(self) -> Status:
        """Whether it is running, and whether it is migrating."""
        return Status(self.status, self.running, self.migration)

    @property
    def incoming(self) -> bool:
        """Whether it is waiting for VM state."""
        return self.guest.incoming

    @property
    def migrating(self) -> bool:
        """Whether a migration is running, or has not left the guest in its last run state yet."""
        return self.guest.migrating


def _count(cpus: tuple[str, ...]) -> str:
    kinds = ", ".join(dict.fromkeys(cpus))
    return f"{len(cpus)} CPU{'s' if len(cpus) != 1 else ''} ({kinds})"


def _differing(what: str, before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    return [
        *(f"it lacks the {what} {name} ({before[name]})" for name in before if name not in now),
        *(f"it has another {what}, {name} ({now[name]})" for name in now if name not in before),
        *(
            f"its {what} {name} is {now[name]}, not {before[name]}"
            for name in before
            if name in now and now[name] != before[name]
        ),
    ]
