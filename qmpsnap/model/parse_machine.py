"""The only reader of QEMU's raw answers about a machine: run state, migration, devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from qmpsnap.errors import Malformed
from qmpsnap.model.machine import Device, Fingerprint, Machine, Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qmpsnap.model.graph import Graph

__all__ = [
    "MACHINE_QUERIES",
    "MigrationStatus",
    "device_path",
    "parse_machine",
    "parse_migration",
    "parse_status",
]

Raw = dict[str, object]

MACHINE_QUERIES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("query-status", {}),
    ("query-migrate", {}),
    ("query-migrate-capabilities", {}),
    ("query-migrate-parameters", {}),
    ("query-version", {}),
    ("query-memory-size-summary", {}),
    ("query-cpus-fast", {}),
    ("query-kvm", {}),
    ("query-block-exports", {}),
    ("qom-get", {"path": "/machine", "property": "type"}),
    ("qom-list", {"path": "/machine/peripheral"}),
    ("qom-list", {"path": "/machine/peripheral-anon"}),
)
"""The commands, with arguments, whose answers `parse_machine` takes, in this order."""

_SET = ("max-bandwidth",)  # the parameters that we set
_PERIPHERAL = "/machine/peripheral/"


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """How far a migration is. QAPI: MigrationInfo (migration.json).

    Attributes:
        status: QEMU's word; "none" when there was none.
        error: Its text when it failed, else "".
        transferred: Bytes of memory that are written.
        total: Bytes of memory that there are.
        remaining: Bytes of memory that are still to come; what holds zeros is not transferred.
    """

    status: str
    error: str = ""
    transferred: int = 0
    total: int = 0
    remaining: int = 0


def parse_migration(answer: object) -> MigrationStatus:
    """Read query-migrate.

    Raises:
        Malformed: When it is not of the schema's shape.
    """
    try:
        row = cast("Raw", answer)
        memory = cast("Raw", row.get("ram") or {})
        return MigrationStatus(
            status=str(row.get("status", "none")),
            error=str(row.get("error-desc", "")),
            transferred=int(cast("int", memory.get("transferred", 0))),
            total=int(cast("int", memory.get("total", 0))),
            remaining=int(cast("int", memory.get("remaining", 0))),
        )
    except (TypeError, AttributeError, ValueError) as error:
        raise Malformed(f"QEMU's answer to query-migrate has not the expected shape: {error!r}") from error


def parse_status(state: object, migration: object) -> Status:
    """Read query-status and query-migrate.

    Raises:
        Malformed: When one is not of the schema's shape.
    """
    try:
        row = cast("Raw", state)
        return Status(str(row["status"]), bool(row["running"]), parse_migration(migration).status)
    except (TypeError, KeyError) as error:
        raise Malformed(f"QEMU's answer to query-status has not the expected shape: {error!r}") from error


def device_path(qdev: str) -> str:
    """QOM path of the device that query-block calls so: a path, or the plain id of one."""
    return qdev if qdev.startswith("/") else f"{_PERIPHERAL}{qdev}"


def parse_machine(
    answers: Sequence[object],
    kinds: Mapping[str, str],
    graph: Graph,
    *,
    cpu: str,
    passes_files: bool,
    process: str,
) -> Machine:
    """Join the answers.

    Args:
        answers: Return values of `MACHINE_QUERIES`, in their order.
        kinds: QOM type of each disk's device, by the disk's name; disks without a device are missing.
        graph: The block graph, for the disks' sizes.
        cpu: QOM type of the CPUs.
        passes_files: Whether the monitor takes open files.
        process: Which QEMU it is, or "".

    Raises:
        Malformed: When an answer is not of the schema's shape.
    """
    try:
        (
            status,
            migration,
            capabilities,
            parameters,
            version,
            memory,
            cpus,
            kvm,
            exports,
            machine,
            *plugged,
        ) = answers
        state = cast("Raw", status)
        fingerprint = Fingerprint(
            machine=_text(machine),
            memory=_memory(cast("Raw", memory)),
            cpus=(cpu,) * len([one["qom-path"] for one in cast("list[Raw]", cpus)]),
            devices={
                f"{place}{one['name']}": _kind(str(one["type"]))
                for place, rows in zip(("", "/"), plugged, strict=True)
                for one in cast("list[Raw]", rows)
                if str(one["type"]).startswith("child<")
            },
            disks={disk.name: disk.active.virtual_size for disk in graph.disks.values() if disk.layers},
            qemu=_version(cast("Raw", version)),
        )
        return Machine(
            status=str(state["status"]),
            running=bool(state["running"]),
            migration=parse_migration(migration).status,
            capabilities={
                str(one["capability"]): bool(one["state"]) for one in cast("list[Raw]", capabilities)
            },
            parameters={
                name: value
                for name, value in cast("Raw", parameters).items()
                if name in _SET and isinstance(value, int)
            },
            fingerprint=fingerprint,
            devices={name: Device(device_path(graph.disks[name].qdev), kind) for name, kind in kinds.items()},
            passes_files=passes_files,
            process=process,
            exported=frozenset(str(one["node-name"]) for one in cast("list[Raw]", exports)),
            blocked=tuple(
                map(str, cast("list[object]", cast("Raw", migration).get("blocked-reasons") or []))
            ),
            emulated=not cast("Raw", kvm)["enabled"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Malformed(f"QEMU's answer about its machine has not the expected shape: {error!r}") from error


def _text(answer: object) -> str:
    if not isinstance(answer, str):
        raise TypeError(f"a text was expected, not {answer!r}")
    return answer


def _memory(row: Raw) -> int:
    return int(cast("int", row["base-memory"])) + int(cast("int", row.get("plugged-memory", 0)))


def _kind(child: str) -> str:
    return child.removeprefix("child<").removesuffix(">")


def _version(row: Raw) -> str:
    number = cast("Raw", row["qemu"])
    return f"{number['major']}.{number['minor']}.{number['micro']}"
