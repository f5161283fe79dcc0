"""What a machine is beyond its disks: its run state, and what VM state has to match."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from qmpsnap.model.document import Count, Text
from qmpsnap.model.frozen import Frozen, FrozenStruct

FOR_A_LOAD = "restore-vm"
"""The run state in which a load leaves a guest that ran when it fails. QAPI: RunState (run-state.json)."""

# Run states in which a migration is still to come in: nothing can be saved, all can be loaded.
_INCOMING = "inmigrate"

_ASLEEP = "suspended"
_NOT_MIGRATING = frozenset({"none", "completed", "failed", "cancelled"})


class Fingerprint(FrozenStruct, frozen=True):
    """What has to be equal where VM state is loaded, and what it was saved by.

    Attributes:
        machine: QOM type of the machine, which has the machine's version in it.
        memory: Bytes of RAM.
        cpus: QOM type of each CPU.
        devices: QOM type of each device, by its id or its place.
        disks: Bytes that the guest sees of each disk, by the disk's name.
        qemu: Version of QEMU; another one may do, so it is told and not compared.
    """

    machine: Text
    memory: Count
    cpus: tuple[Text, ...]
    devices: Mapping[str, Text]
    disks: Mapping[str, Count]
    qemu: Text = ""

    def differences(self, now: Fingerprint) -> tuple[str, ...]:
        """In what a machine differs from this one, each as a sentence's part; none: the state fits."""
        found = []
        if now.machine != self.machine:
            found.append(f"the machine is {now.machine}, not {self.machine}")
        if now.memory != self.memory:
            found.append(f"it has {now.memory} bytes of memory, not {self.memory}")
        if now.cpus != self.cpus:
            found.append(f"it has {_many(now.cpus)}, not {_many(self.cpus)}")
        found += _apart("device", self.devices, now.devices)
        found += _apart("disk", self.disks, now.disks)
        return tuple(found)


class Status(Struct, frozen=True):
    """How the guest stands.

    Attributes:
        state: QEMU's run state, as in "running", "paused", "io-error". QAPI: RunState (run-state.json).
        running: Whether the guest's CPUs run.
        migration: Status of the last migration, also of one that kept VM state in a file; "none" when there
            was none. QAPI: MigrationStatus (migration.json).
    """

    state: str
    running: bool
    migration: str = "none"

    @property
    def incoming(self) -> bool:
        """Whether it waits for VM state."""
        return self.state == _INCOMING

    @property
    def migrating(self) -> bool:
        """Whether a migration is running."""
        return self.migration not in _NOT_MIGRATING

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
    """A machine as it stands now.

    Attributes:
        status: QEMU's run state. QAPI: RunState (run-state.json).
        running: Whether the guest's CPUs run.
        migration: Status of the last migration; "none" when there was none.
        capabilities: What a migration does, by name.
        parameters: How it does it, by name; those that we set.
        fingerprint: What VM state fits.
        devices: The device of each disk, by the disk's name.
        passes_files: Whether the monitor takes open files: a unix socket does.
        process: Which QEMU it is: no other has the same; "" when that is not known.
        exported: Names of the nodes that QEMU exports (NBD, vhost-user, FUSE).
        blocked: Why QEMU could not migrate the machine, in its words, as far as it knows before it tries.
        emulated: Whether KVM does not run the CPUs: then QEMU translates the guest's code, as far as we know.
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

    @property
    def asleep(self) -> bool:
        """Whether the guest sleeps (ACPI S3) until something wakes it."""
        return self.status == _ASLEEP

    @property
    def goes_on(self) -> bool:
        """Whether nobody has paused the guest: it runs, or it sleeps."""
        return self.running or self.asleep

    def plugged(self, disk: str) -> Device | None:
        """The device that was plugged in for a disk, inside of which the disk may lie; None without one."""
        device = self.devices.get(disk)
        if device is None:
            return None
        _, _, place, name, *inner = (*device.path.split("/"), "", "")
        known = name if place == "peripheral" else f"/{name}"
        kind = self.fingerprint.devices.get(known) if any(inner) and place.startswith("peripheral") else None
        return Device(f"/machine/{place}/{name}", kind) if kind else device

    @property
    def stands(self) -> Status:
        """Whether it runs, and whether it migrates."""
        return Status(self.status, self.running, self.migration)

    @property
    def incoming(self) -> bool:
        """Whether it waits for VM state."""
        return self.stands.incoming

    @property
    def migrating(self) -> bool:
        """Whether a migration is running."""
        return self.stands.migrating


def _many(cpus: tuple[str, ...]) -> str:
    kinds = ", ".join(dict.fromkeys(cpus))
    return f"{len(cpus)} CPU{'s' if len(cpus) != 1 else ''} ({kinds})"


def _apart(what: str, was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    found = [f"it lacks the {what} {name} ({was[name]})" for name in was if name not in now]
    found += [f"it has another {what}, {name} ({now[name]})" for name in now if name not in was]
    found += [
        f"its {what} {name} is {now[name]}, not {was[name]}"
        for name in was
        if name in now and now[name] != was[name]
    ]
    return found
