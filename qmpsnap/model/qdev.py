"""Names of disks, and their other spellings, derived from the guest's devices.

query-block gives a device either by its id alone or by its path in QEMU's object model (QOM). A name has
to be stable for QEMU's lifetime, which the root node's is not: every snapshot puts another node on top.
QEMU numbers devices without an id and never uses a number twice (hw/core/qdev.c, `anon_count`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import Malformed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["disk_names", "spellings_of"]

_MACHINE = "/machine/"
_PERIPHERAL = "/machine/peripheral/"
_ANONYMOUS = "/machine/peripheral-anon/"


def disk_names(disks: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    """The name of each disk: qdev id, else drive id, else the part of the QOM path that distinguishes it.

    A disk's stronger claim to a name beats a weaker one, whatever QEMU's order. The root
    node is the name if there is neither device nor drive.

    Args:
        disks: For each disk its qdev as in query-block, its drive id and its root node; each may be "".

    Raises:
        Malformed: When two disks cannot be distinguished.
    """
    claims = [_claims(*disk) for disk in disks]
    names: dict[int, str] = {}
    taken: set[str] = set()
    for rank in range(max(map(len, claims), default=0)):
        for index, claimed in enumerate(claims):
            if index in names or rank >= len(claimed) or not claimed[rank] or claimed[rank] in taken:
                continue
            names[index] = claimed[rank]
            taken.add(claimed[rank])
    for index, claimed in enumerate(claims):
        if index not in names:
            raise Malformed(f"QEMU lists two disks that cannot be told apart: {[*filter(None, claimed)]!r}")
    return tuple(names[index] for index in range(len(disks)))


def _claims(qdev: str, drive: str, root: str) -> tuple[str, ...]:
    """Possible names of a disk, the best first; "" for a missing one."""
    return (
        _user_id(qdev),
        drive,
        _anonymous(qdev),
        qdev.removeprefix(_MACHINE),
        qdev,
        drive and f"drive/{drive}",  # of a -drive without a device, whose id is another device's
        "" if qdev or drive else root,
    )


def _user_id(qdev: str) -> str:
    if not qdev.startswith("/"):
        return qdev
    return qdev.removeprefix(_PERIPHERAL).partition("/")[0] if qdev.startswith(_PERIPHERAL) else ""


def _anonymous(qdev: str) -> str:
    """The number that QEMU gave a device without an id: `device[0]`."""
    return qdev.removeprefix(_ANONYMOUS).partition("/")[0] if qdev.startswith(_ANONYMOUS) else ""


def spellings_of(qdev: str) -> Iterator[str]:
    """Every spelling of the device: its id or number, and its QOM path, whole or up to the device."""
    if not qdev:
        return
    yield qdev
    if not qdev.startswith("/"):
        yield from (_PERIPHERAL + qdev, f"peripheral/{qdev}")
        return
    yield qdev.removeprefix(_MACHINE)
    for prefix in (_PERIPHERAL, _ANONYMOUS):
        if qdev.startswith(prefix):
            parts = qdev.removeprefix(prefix).split("/")
            yield parts[0]
            for count in range(1, len(parts)):
                path = prefix + "/".join(parts[:count])
                yield from (path, path.removeprefix(_MACHINE))
