"""A machine from QEMU's replies: run state, migration, devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from qmpsnap.model.graph import Graph
from qmpsnap.model.machine import Device, Fingerprint, Machine, Status
from qmpsnap.model.qapi import Reply, read

MACHINE_QUERIES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("query-migrate", {}),  # first, so that one that ends meanwhile leaves its run state to be seen
    ("query-status", {}),
    ("query-migrate-capabilities", {}),
    ("query-migrate-parameters", {}),
    ("query-memory-size-summary", {}),
    ("query-cpus-fast", {}),
    ("query-block-exports", {}),
    ("qom-list", {"path": "/machine/peripheral"}),
    ("qom-list", {"path": "/machine/peripheral-anon"}),
    ("query-iothreads", {}),
)
"""The commands, with arguments, whose replies `parse_machine` takes, in this order."""

_CPUS = [command for command, _ in MACHINE_QUERIES].index("query-cpus-fast")

BUILD_QUERIES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("query-version", {}),
    ("query-kvm", {}),
    ("qom-get", {"path": "/machine", "property": "type"}),
)
"""The commands, with arguments, whose replies `parse_build` takes, in this order."""

_PERIPHERAL = "/machine/peripheral/"


class StatusInfo(Reply, frozen=True):
    """The run state. QAPI: query-status (run-state.json)."""

    status: str
    running: bool


class Build(Struct, frozen=True):
    """What is the same for as long as a QEMU runs.

    Attributes:
        machine: QOM type of the machine.
        cpu: QOM type of the CPUs; "" where there is none, as with `-M none`.
        qemu: Version of QEMU.
        emulated: Whether the CPUs are emulated (TCG).
        ram: Name that the RAM has in VM state; "" if it is in several blocks, or there is none.
    """

    machine: str
    cpu: str
    qemu: str
    emulated: bool
    ram: str = ""


class MigrationRamInfo(Reply, frozen=True):
    """Memory: bytes in total and remaining, and the pages written so far, those with data and zero pages."""

    total: int = 0
    remaining: int = 0
    normal: int = 0
    duplicate: int = 0


class MigrationInfo(Reply, frozen=True):
    """Progress of a migration; "none" if there was none. QAPI: query-migrate (migration.json)."""

    status: str = "none"
    error_desc: str = ""
    ram: MigrationRamInfo = MigrationRamInfo()
    blocked_reasons: tuple[str, ...] = ()


class MigrationEvent(Reply, frozen=True):
    """QAPI: MIGRATION (migration.json)."""

    status: str


class AddfdInfo(Reply, frozen=True):
    """A descriptor that QEMU was given, as QEMU numbers it. QAPI: add-fd (misc.json)."""

    fdset_id: int
    fd: int


class MigrationCapabilityStatus(Reply, frozen=True):
    """QAPI: query-migrate-capabilities (migration.json)."""

    capability: str
    state: bool


class MigrationParameters(Reply, frozen=True):
    """Parameters that we set. QAPI: query-migrate-parameters (migration.json)."""

    max_bandwidth: int | None = None


class VersionTriple(Reply, frozen=True):
    """A version in three numbers."""

    major: int
    minor: int
    micro: int


class VersionInfo(Reply, frozen=True):
    """QAPI: query-version (control.json)."""

    qemu: VersionTriple


class MemoryInfo(Reply, frozen=True):
    """Bytes of RAM. QAPI: query-memory-size-summary (machine.json)."""

    base_memory: int
    plugged_memory: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.base_memory + self.plugged_memory


class Memdev(Reply, frozen=True):
    """A memory object. QAPI: query-memdev (machine.json)."""

    share: bool
    id: str = ""


class CpuInfoFast(Reply, frozen=True):
    """A CPU. QAPI: query-cpus-fast (machine.json)."""

    qom_path: str
    thread_id: int = 0


class KvmInfo(Reply, frozen=True):
    """QAPI: query-kvm (machine.json)."""

    enabled: bool


class BlockExportInfo(Reply, frozen=True):
    """An export of a node. QAPI: query-block-exports (block-export.json)."""

    node_name: str


class IOThreadInfo(Reply, frozen=True):
    """A thread of devices. QAPI: query-iothreads (misc.json)."""

    id: str


class ObjectPropertyInfo(Reply, frozen=True):
    """A property of an object; for a child, its type is `child<TYPE>`. QAPI: qom-list (qom.json)."""

    name: str
    type: str


def parse_status(migration: object, state: object) -> Status:
    """Return what query-migrate and query-status say.

    Raises:
        Malformed: When one is not of the schema's shape.
    """
    status = read(StatusInfo, state, "query-status")
    return Status(status.status, status.running, read(MigrationInfo, migration, "query-migrate").status)


def device_path(qdev: str) -> str:
    """QOM path of the device that query-block calls so: a path, or the plain id of one."""
    return qdev if qdev.startswith("/") else f"{_PERIPHERAL}{qdev}"


def parse_build(replies: Sequence[object], cpu: str, *, ram: str = "") -> Build:
    """Join the replies to `BUILD_QUERIES`, in their order.

    Raises:
        Malformed: When one is not of the schema's shape.
    """
    version, kvm, machine = replies
    qemu = read(VersionInfo, version, "query-version").qemu
    return Build(
        machine=read(str, machine, "qom-get"),
        cpu=cpu,
        qemu=f"{qemu.major}.{qemu.minor}.{qemu.micro}",
        emulated=not read(KvmInfo, kvm, "query-kvm").enabled,
        ram=ram,
    )


def parse_machine(
    replies: Sequence[object],
    kinds: Mapping[str, str],
    graph: Graph,
    *,
    build: Build,
    passes_files: bool,
    process: str,
) -> Machine:
    """Join the replies.

    Args:
        replies: Return values of `MACHINE_QUERIES`, in their order.
        kinds: QOM type of each disk's device, by the disk's name; disks without a device are missing.
        graph: The block graph, for the disks' sizes.
        build: What does not change.
        passes_files: Whether the monitor takes open files.
        process: Which QEMU it is, or "".

    Raises:
        Malformed: When a reply is not of the schema's shape.
    """
    moving, state, abilities, settings, ram, cpus, exports, plugged, anonymous, threads = replies
    status = read(StatusInfo, state, "query-status")
    migration = read(MigrationInfo, moving, "query-migrate")
    capabilities = read(list[MigrationCapabilityStatus], abilities, "query-migrate-capabilities")
    bandwidth = read(MigrationParameters, settings, "query-migrate-parameters").max_bandwidth
    fingerprint = Fingerprint(
        machine=build.machine,
        memory=parse_memory(ram).total,
        cpus=(build.cpu,) * len(read(list[CpuInfoFast], cpus, "query-cpus-fast")),
        devices={**dict(_children(plugged)), **{f"/{name}": type_ for name, type_ in _children(anonymous)}},
        disks={disk.name: disk.active.virtual_size for disk in graph.disks.values() if disk.layers},
        qemu=build.qemu,
        ram=build.ram,
    )
    return Machine(
        status=status.status,
        running=status.running,
        migration=migration.status,
        capabilities={capability.capability: capability.state for capability in capabilities},
        parameters={} if bandwidth is None else {"max-bandwidth": bandwidth},
        fingerprint=fingerprint,
        devices={name: Device(device_path(graph.disks[name].qdev), kind) for name, kind in kinds.items()},
        passes_files=passes_files,
        process=process,
        exported=frozenset(
            export.node_name for export in read(list[BlockExportInfo], exports, "query-block-exports")
        ),
        blocked=migration.blocked_reasons,
        emulated=build.emulated,
        iothreads=bool(read(list[IOThreadInfo], threads, "query-iothreads")),
    )


def parse_cpu_threads(replies: Sequence[object]) -> tuple[int, ...]:
    """The ids of the threads that run the CPUs, from the return values of `MACHINE_QUERIES`.

    Raises:
        Malformed: When the reply is not of the schema's shape.
    """
    cpus = read(list[CpuInfoFast], replies[_CPUS], "query-cpus-fast")
    return tuple(cpu.thread_id for cpu in cpus)


def parse_shared_memory(reply: object) -> tuple[str, ...]:
    """The ids of the memory objects that are shared, from the reply to query-memdev.

    Raises:
        Malformed: When it is not of the schema's shape.
    """
    return tuple(row.id for row in read(list[Memdev], reply, "query-memdev") if row.share)


def parse_memory(reply: object) -> MemoryInfo:
    """The guest's RAM, from the reply to query-memory-size-summary.

    Raises:
        Malformed: When it is not of the schema's shape.
    """
    return read(MemoryInfo, reply, "query-memory-size-summary")


def _children(reply: object) -> Iterator[tuple[str, str]]:
    """Name and QOM type of each object in a container."""
    for member in read(list[ObjectPropertyInfo], reply, "qom-list"):
        if member.type.startswith("child<"):
            yield member.name, member.type.removeprefix("child<").removesuffix(">")
