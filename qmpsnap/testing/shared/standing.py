"""The state of a shared machine as QEMU shows it, for comparison after a reset. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from msgspec import Struct

from qmpsnap.model.frozen import FrozenStruct
from qmpsnap.model.graph import Graph, draw

Reset = Literal["memory", "clone", "disks", "boot", "none"]
"""How a machine is reset before a test.

- "memory": memory and disks are reverted in the running QEMU.
- "clone": a new QEMU goes on from the memory and the disks of a template.
- "disks": the disks are reverted in the running QEMU, and the guest is reset.
- "boot": a new QEMU boots on fresh overlays.
- "none": the machine stays as the previous test left it.
"""


class Standing(FrozenStruct, frozen=True):
    """What must be the same before each test.

    Attributes:
        chains: The files of each disk, newest first: of one that can be written to those below its active
            layer, of any other all, which tells its medium.
        nodes: Block nodes that are in no disk's chain, without those that QEMU has named.
        parts: Other names by kind: devices, objects, exports, chardevs, jobs.
    """

    chains: Mapping[str, tuple[str, ...]]
    nodes: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, graph: Graph, parts: Mapping[str, tuple[str, ...]]) -> Standing:
        """Return the state that a graph and other names describe."""
        return cls(
            chains={
                name: disk.files[1:] if disk.writable else disk.files for name, disk in graph.disks.items()
            },
            nodes=tuple(sorted(name for name in graph.nodes.keys() - in_chains(graph) if name[0] != "#")),
            parts=parts,
        )


class Difference(Struct, frozen=True):
    """A difference from the first state: `what` differs, and the names that are new or gone."""

    what: str
    more: tuple[str, ...]
    fewer: tuple[str, ...]

    def __str__(self) -> str:
        came = f"new: {', '.join(self.more)}" if self.more else ""
        went = f"gone: {', '.join(self.fewer)}" if self.fewer else ""
        return f"{self.what} ({'; '.join(part for part in (came, went) if part)})"


def in_chains(graph: Graph) -> frozenset[str]:
    """Return the nodes of all disks: those of each layer and its file, and the filters."""
    names: set[str] = set()
    for disk in graph.disks.values():
        names |= {disk.root, *(part.node for part in disk.filters)}
        for layer in disk.layers:
            names |= {layer.node, layer.file_node}
    return frozenset(names - {""})


def differences(before: Standing, after: Standing) -> tuple[Difference, ...]:
    """Return the differences between two states; none if they are equal."""
    pairs: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
        ("disks", tuple(before.chains), tuple(after.chains)),
        *(
            (f"the chain of {disk}", files, after.chains[disk])
            for disk, files in before.chains.items()
            if disk in after.chains
        ),
        ("block nodes", before.nodes, after.nodes),
        *((kind, names, after.parts.get(kind, ())) for kind, names in before.parts.items()),
    ]
    return tuple(
        Difference(what, _without(now, then), _without(then, now))
        for what, then, now in pairs
        if sorted(then) != sorted(now)
    )


def _without(names: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in others)


def pictures(graph: Graph) -> str:
    """Draw the chain of each disk, a line for each."""
    return "".join(f"{name}: {draw(disk.files)}\n" for name, disk in graph.disks.items())


def names_of(kind: str, answer: object) -> tuple[str, ...]:
    """The names in QEMU's answer to a query, sorted.

    Args:
        kind: The key that holds a name in each entry of the list.
        answer: What QEMU returned; anything but a list has no names.
    """
    entries = cast("list[Mapping[str, object]]", answer) if isinstance(answer, list) else []
    return tuple(sorted(str(entry.get(kind, "")) for entry in entries))
