"""Builds the tree of a machine's images: which image is backed by which, and what each of them holds.

The backing relation comes from QEMU's graph and from the headers of the images, never from records. Records
only tell which snapshot a layer holds, and who owns it. Without any record the tree is complete, but has no
names.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from qmpsnap.model.files import Ask, FileFact, Files
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.moments import Moment, MomentPart, related_records
from qmpsnap.model.names import is_device_path, is_invalid_name, state_directory_choices
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.tree import Owner, Tree, TreeImage


def ask_around(graph: Graph) -> Ask:
    """What has to be known first: the files of the chains, and the images beside them."""
    files = tuple(file for disk in graph.disks.values() for file in disk.files if file.startswith("/"))
    return Ask(files=files, survey=_directories(files))


def with_sizes(moments: Iterable[Moment], tree: Tree) -> tuple[Moment, ...]:
    """The moments, with the sizes of overlays that QEMU does not have open."""
    return tuple(
        replace(moment, held=tuple(_sized(part, tree) for part in moment.held)) for moment in moments
    )


def _sized(part: MomentPart, tree: Tree) -> MomentPart:
    image = tree.at(part.overlay) if part.allocated is None else None
    return part if image is None else replace(part, allocated=image.allocated)


def _directories(files: Iterable[str]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(
            posixpath.dirname(file) for file in files if not is_device_path(file) and file[:1] == "/"
        )
    )


@dataclass(slots=True)
class _Node:
    """An image while the tree grows; `key` is its canonical name."""

    key: str
    fact: FileFact | None = None
    backing: str | None = None
    disks: list[str] = field(default_factory=list)
    owner: Owner = "unknown"
    layer: int | None = None
    holds: list[str] = field(default_factory=list)
    began: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)


class Growth:
    """Finds the images that are connected with those of the machine.

    Args:
        graph: QEMU's graph.
        records: Records of this machine, and the records of others that were read.
        files: The answers about files; `images` are the images in the directories of the layers.

    Attributes:
        own: The records of this machine's moments.
        spelled: Path of each image as the graph or a record spells it, by its canonical name.
        nodes: The images, by their canonical names.
        order: The canonical names, each after the name of the image by which it is backed.
    """

    def __init__(self, graph: Graph, records: Iterable[Record], files: Files) -> None:
        self._graph = graph
        self._files = files
        self._records = tuple(records)
        self.own = related_records(graph, self._records)
        asked = {fact.real: fact for fact in files.files.values()}
        self._missing = {key for key, fact in asked.items() if fact.kind in {"missing", "symlink"}}
        self._facts = {
            key: fact for key, fact in ({**files.images, **asked}).items() if key not in self._missing
        }
        self.spelled: dict[str, str] = {}
        self.nodes: dict[str, _Node] = {}
        self._layers = {self.key(layer.file): layer for disk in graph.disks.values() for layer in disk.layers}
        self._active = {self.key(disk.active.file) for disk in graph.disks.values() if disk.writable}
        self._plant()
        self._connect()
        self.order = tuple(self._ordered())
        self._assign()

    def ask(self) -> Ask:
        """What has to be known next, if `files` is the answer to `ask_around` with the machine's records.

        These are layers that have left the chains, images in their directories, and records of images that no
        record has named so far: other machines on the same base image have their records beside it.
        """
        named = (*self.spelled.values(), *(node.key for node in self.nodes.values() if node.fact is None))
        unseen = tuple(file for file in named if not self.seen(file))
        strangers = tuple(node.key for node in self.nodes.values() if node.owner == "unknown" and node.fact)
        roots = self.roots()
        places = (
            place for key in strangers for place in state_directory_choices(roots[key], (roots[key], key))
        )
        looked_in = {*self._files.looked_in}
        return Ask(
            files=(*unseen, *strangers),
            survey=tuple(place for place in _directories(unseen) if place not in looked_in),
            records=tuple(places),
        )

    def tree(self, moments: Iterable[Moment]) -> Tree:
        """The tree of the graph's disks, with the names of the machine's moments."""
        self._name(moments)
        return Tree(tuple(self._images()))

    def key(self, path: str) -> str:
        """The canonical name of a path, or the path itself if that is not known."""
        return self._files.real(path)

    def seen(self, path: str) -> bool:
        """Whether the existence of the file was checked."""
        return not path.startswith("/") or path in self._files.images or path in self._files.files

    def _node(self, path: str) -> _Node:
        key = self.key(path)
        self.spelled.setdefault(key, path)
        return self.nodes.setdefault(key, _Node(key, self._facts.get(key)))

    def _plant(self) -> None:
        """Add the images that the machine's chains and records name."""
        for disk in self._graph.disks.values():
            self._chain(disk)
        for record in self.own:
            for name, held in record.covered.items():
                if name in self._graph.disks:
                    going_on = (file for file in record.goes_on(name) if self._there(file))
                    wanted = () if name not in record.disks and not self._there(held) else (held,)
                    for file in (*wanted, *going_on):
                        _add(self._node(file).disks, name)
        for node in self.nodes.values():
            node.owner = "machine"

    def _there(self, path: str) -> bool:
        """Whether the file exists, or its existence was not checked."""
        return not self.seen(path) or self.key(path) in self._facts

    def _chain(self, disk: Disk) -> None:
        below: str | None = None
        for layer in reversed(disk.layers):
            node = self._node(layer.file)
            _add(node.disks, disk.name)
            node.backing, below = below, node.key

    def _connect(self) -> None:
        """Add all images that are backed by these images, or back them, directly or through others."""
        above: dict[str, list[str]] = {}
        for key, fact in self._facts.items():
            if fact.backing is not None and key not in self._layers:
                above.setdefault(fact.backing, []).append(key)
        pending = [*self.nodes]
        while pending:
            node = self.nodes[pending.pop()]
            if node.backing is None and node.key not in self._layers:
                node.backing = _backing(node.fact)
            around = [*above.get(node.key, ())]
            if node.backing is not None and node.backing.startswith("/"):
                around.append(node.backing)
            for key in around:
                if key not in self.nodes:
                    self.nodes[key] = _Node(key, self._facts.get(key))
                    pending.append(key)

    def _ordered(self) -> Iterator[str]:
        """The images, each after the one by which it is backed; a loop is cut at one image."""
        above: dict[str, list[str]] = {}
        roots: dict[str, None] = {}
        for key, node in self.nodes.items():
            if node.backing in self.nodes:
                above.setdefault(node.backing, []).append(key)
            else:
                roots[key] = None
        seen: set[str] = set()
        for root in (*roots, *self.nodes):
            if root not in seen and root not in roots:
                self.nodes[root].backing = None
            pending = [root]
            while pending:
                key = pending.pop()
                if key not in seen:
                    seen.add(key)
                    yield key
                    pending += sorted(above.get(key, ()), reverse=True)

    def roots(self) -> dict[str, str]:
        """For each image the base image of its chain."""
        roots: dict[str, str] = {}
        for key in self.order:
            roots[key] = roots.get(self.nodes[key].backing or "", key)
        return roots

    def _assign(self) -> None:
        """Set the owner of each image; an image that backs one of the machine's is the machine's, too."""
        self._pass_down("machine")
        own = {record.id for record in self.own}
        moments = (record for record in self._records if isinstance(record, MomentRecord))
        for record in moments:
            if record.id in own:
                continue
            held = {record.covered[disk] for disk in record.disks}
            for file in _named(record):
                node = self.nodes.get(self.key(file))
                if node is None:
                    continue
                if file in held:
                    _add(node.other, record.name)
                if node.owner == "unknown":
                    node.owner = "other"
        self._pass_down("other")
        for key in self.order:
            node = self.nodes[key]
            below = self.nodes.get(node.backing or "")
            if node.owner == "unknown" and below is not None and below.owner == "other":
                node.owner = "other"

    def _pass_down(self, owner: Owner) -> None:
        """Give all images that back an image of this owner, and have no owner yet, to the owner."""
        for key in reversed(self.order):
            node = self.nodes[key]
            below = self.nodes.get(node.backing or "")
            if node.owner == owner and below is not None and below.owner == "unknown":
                below.owner = owner

    def _name(self, moments: Iterable[Moment]) -> None:
        """Note in each image the names of the snapshots that it holds."""
        for moment in moments:
            lost = moment.record.lost if moment.record is not None else ()
            for part in (part for part in moment.held if part.disk not in lost):
                node = self.nodes.get(self.key(part.file))
                if node is not None:
                    _add(node.holds if moment.kind == "external" else node.inside, moment.name)
        for record in self.own:
            for disk, held in record.covered.items():
                if disk not in record.disks:
                    if disk not in record.lost and (node := self.nodes.get(self.key(held))) is not None:
                        _add(node.deleted, record.name)
                    continue
                for file in record.goes_on(disk):
                    if (node := self.nodes.get(self.key(file))) is not None:
                        _add(node.began, record.name)

    def _images(self) -> Iterator[TreeImage]:
        """The images, each after the one by which it is backed."""
        invalid = {
            self.key(file)
            for record in self._records
            if isinstance(record, IntentRecord)
            for file in record.invalid
        }
        for key in self.order:
            yield self._image(self.nodes[key], invalid)

    def _image(self, node: _Node, invalid: Collection[str]) -> TreeImage:
        layer = self._layers.get(node.key)
        fact = node.fact or FileFact("missing")
        header = fact.header
        return TreeImage(
            self.spelled.get(node.key, node.key),
            self.spelled.get(node.backing, node.backing) if node.backing is not None else None,
            tuple(node.disks),
            node.owner,
            format=layer.format if layer is not None else header.format if header is not None else "",
            virtual_size=layer.virtual_size
            if layer is not None
            else header.virtual_size
            if header is not None
            else None,
            allocated=layer.allocated if layer is not None else fact.allocated if fact.taken else None,
            active=node.key in self._active,
            in_chain=layer is not None,
            missing=layer is None and node.key in self._missing,
            invalid=node.key in invalid or is_invalid_name(node.key),
            holds=tuple(node.holds),
            began=tuple(node.began),
            inside=tuple(node.inside),
            holds_other=tuple(node.other),
            holds_deleted=tuple(node.deleted),
            shows=str(self._files.keepers[node.key]) if node.key in self._files.keepers else "",
        )


def _backing(fact: FileFact | None) -> str | None:
    if fact is None:
        return None
    return fact.backing or (fact.header.backing if fact.header is not None else None)


def _named(record: MomentRecord) -> Iterator[str]:
    yield from record.covered.values()
    yield from record.all_going_on
    for files in record.chains.values():
        yield from files


def _add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)
