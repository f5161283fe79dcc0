"""A new branch from a moment: an overlay on the layer of each disk that holds it, and the way to it."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from qmpsnap.errors import NotInChain, Unsupported
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.header import Header, backing_path
from qmpsnap.model.hints import command, qmp, quoted
from qmpsnap.model.machine import Machine
from qmpsnap.model.moments import Moment, written_into
from qmpsnap.model.names import digest, is_owned_node, node_name, overlay_files
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.step import Root, Step
from qmpsnap.plan.checks.disk import refuse_empty, refuse_read_only
from qmpsnap.plan.checks.encryption import refuse_clear_overlay, refuse_second_opening, secret_for
from qmpsnap.plan.checks.place import beside_active, refuse_barred, refuse_place, refuse_there
from qmpsnap.plan.commands.block import (
    blockdev_add,
    blockdev_del,
    open_root,
    put_on,
    reopen_filter,
    set_drive,
)
from qmpsnap.plan.commands.files import LuksHeader, create_overlay
from qmpsnap.plan.ownership import refuse_strange_base
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate.in_place import hindrance

NOT_TOLD = (
    "QEMU does not report a disk's discard and aio: its new overlay is opened with discard=unmap, aio=threads"
)
_WRITTEN_BACK = " (QEMU writes UEFI variables back by itself as it loads the memory)"


@dataclass(frozen=True, slots=True)
class Branch:
    """One disk's new branch.

    Attributes:
        disk: The disk.
        root: What it reads once it is there.
        was: What it reads now.
        make: The step that makes the overlay.
        inside: Index of the layer that holds the moment in the disk's present chain; None: it is not there.
        aside: node-name for that layer where it is not in the present chain.
    """

    disk: Disk
    root: Root
    was: Root
    make: Step
    inside: int | None
    aside: str

    def opens(self, machine: Machine) -> tuple[Step, ...]:
        """The steps that open the overlay, on the layer's node where there is one.

        A device with a thread of its own takes no root of another thread ("Different aio context is not
        supported for new node"). A node is in the thread of those that it is connected with, so the overlay
        is opened on a layer of the present chain, and put on its own right before the disk moves: `connects`.
        """
        if self.inside is not None:
            return (open_root(self.root, backing=self.disk.layers[self.inside].node),)
        if not machine.iothreads:
            return (open_root(self.root),)
        (file, form), *_ = self.root.chain
        layer = blockdev_add(self.aside, file, form, io=self.root.io, read_only=True)
        return layer, open_root(self.root, backing=self.disk.base.node)

    def connects(self, machine: Machine) -> tuple[Step, ...]:
        """The step that puts the overlay on its own layer, where it was opened on another one."""
        if self.inside is not None or not machine.iothreads:
            return ()
        return (put_on(open_root(self.root), self.aside),)

    def move(self, machine: Machine, *, prepare: bool) -> Step:
        """The step that gives the disk its new root.

        Args:
            machine: The machine.
            prepare: Whether a new QEMU can go back to the moment, too.

        Raises:
            Unsupported: When the device is of a kind that was not tried, or under another filter.
        """
        disk = self.disk
        if reason := hindrance(disk, machine):
            what, where = reason
            hint = f"leave it out: --leave {quoted(disk.name)}"
            if "pflash" in what:
                hint += _WRITTEN_BACK
            raise Unsupported(
                what,
                feature=f"revert in place {where}",
                hint=f"{hint}; or revert into a new QEMU: --prepare" if prepare else hint,
            )
        closes = _closes(disk.active.node)
        if disk.root != disk.active.node:
            (above,) = disk.filters
            return reopen_filter(self.root, above.node, above.group, self.was, closes=closes, io=above.io)
        return set_drive(self.root, machine.devices[disk.name].path, self.was, closes=closes)

    @property
    def closes(self) -> bool:
        """Whether the active layer is closed once the disk reads another: by QEMU, or by us."""
        return _closes(self.disk.active.node) or is_owned_node(self.disk.active.node)

    @property
    def frees(self) -> tuple[Step, ...]:
        """The steps that free the nodes of ours that the disk leaves behind."""
        left = self.disk.layers[: self.inside] if self.inside is not None else self.disk.layers
        return tuple(blockdev_del(layer.node) for layer in left if is_owned_node(layer.node))


def branch_token(record: MomentRecord, graph: Graph) -> str:
    """Eight hex digits of which all names of a revert are made: others for each branch of the moment."""
    return digest("revert", record.id, len(record.branches), sorted(graph.chains().items()))


def new_files(disks: Iterable[Disk], name: str, token: str) -> dict[str, str]:
    """Where the overlays go, by disk: beside the active layer, `STEM-of-base.NAME-TOKEN.qcow2`.

    Disks that would share one have their names in it. One whose active layer is no file has none.
    """
    local = [disk for disk in disks if disk.layers and disk.active.local]
    ends = {disk.name: (disk.active.file, disk.base.file) for disk in local}
    return overlay_files(ends, f"{name}-{token}")


def branch_files(record: MomentRecord, graph: Graph) -> tuple[str, ...]:
    """Files that have to be known for new branches from the moment."""
    chains = (file for files in record.chains.values() for file in files)
    begun = (file for disk in record.covered for file in record.began(disk))
    present = (file for disk in record.covered if disk in graph.disks for file in graph.disks[disk].files)
    known = (*present, *record.covered.values(), *chains, *begun)
    return tuple(file for file in known if file.startswith("/"))


def branches(
    moment: Moment, disks: list[Disk], token: str, scene: Scene, *, in_place: bool = True
) -> tuple[Branch, ...]:
    """A new branch of each of the disks; or refuse.

    Args:
        moment: Where it begins.
        disks: The disks.
        token: What all names are made of.
        scene: The machine.
        in_place: Whether the disks are to read them in this QEMU, whose devices keep their size.

    Raises:
        NotInChain: When a layer does not hold the moment any more.
        TargetExists: When an overlay's file is there already.
        InvalidTarget: When an overlay cannot be made.
        Unsupported: When the disk has another size than it had, and is to be read in place.
    """
    files = new_files(disks, moment.name, token)
    return tuple(_branch(moment, disk, token, files, scene, in_place=in_place) for disk in disks)


def record_of(moment: Moment) -> MomentRecord:
    """The record of an external moment.

    Raises:
        Unsupported: When it is an internal one.
    """
    if moment.record is None:
        raise Unsupported(
            f"{moment.name!r} is inside the images",
            feature="overlays on a moment inside images",
            hint=f"{command('revert', moment.name)} reverts in place",
        )
    return moment.record


def _branch(
    moment: Moment, disk: Disk, token: str, files: dict[str, str], scene: Scene, *, in_place: bool
) -> Branch:
    record = moment.record
    assert record is not None  # noqa: S101 - an external moment has one
    refuse_empty(disk)
    covered = record.covered[disk.name]
    refuse_invalid(record, disk, scene)
    inside = disk.files.index(covered) if covered in disk.files else None
    if inside == 0:
        raise NotInChain(
            f"{disk.name} writes to {covered}, which held {moment.name!r}: its overlay was committed into it",
            hint="there is nothing to revert to",
        )
    if in_place:
        if inside is None or _closes(disk.active.node):
            refuse_second_opening(disk, aside=inside is None)
        refuse_read_only(disk, "revert", hint=f"it can be left out: --leave {quoted(disk.name)}")
    secret, luks = _secret(disk, inside, scene)
    if inside is not None:
        chain = tuple((layer.file, layer.format) for layer in disk.layers[inside:])
    else:
        chain = left_aside(record, disk, scene)
        refuse_strange_base(record, disk, chain, scene)
        if in_place:
            _refuse_written(record, chain, scene)
    file, active = files.get(disk.name, ""), disk.active
    _refuse_overlay(disk, file, scene)
    size = _size_then(record, disk, inside, scene, in_place=in_place)
    new, old, aside = (
        node_name(digest(token, disk.name, what, avoid=scene.names), owned=True)
        for what in ("root", "was", "aside")
    )
    return Branch(
        disk=disk,
        root=Root(disk.name, new, file, "qcow2", covered, chain, active.io, secret),
        was=replace(Root.of(disk), node=old) if _closes(active.node) else Root.of(disk),
        make=create_overlay(
            file,
            size_bytes=size,
            backing=covered,
            backing_format=chain[0][1],
            like=active.file,
            luks=luks,
        ),
        inside=inside,
        aside=aside,
    )


def _secret(disk: Disk, inside: int | None, scene: Scene) -> tuple[str, LuksHeader | None]:
    """As `secret_for`, of an overlay on the layer that holds the moment; or refuse."""
    layers = (disk.active,) if inside is None else (disk.layers[inside], disk.active)
    secret, luks = secret_for(layers, scene.files) if inside is not None else ("", None)
    if not secret:
        for layer in layers:
            refuse_clear_overlay(disk, layer, plain=False)
    return secret, luks


def _refuse_overlay(disk: Disk, file: str, scene: Scene) -> None:
    """Refuse when the overlay cannot be created beside the active layer."""
    beside_active(disk, hint=f"a disk can be left out: --leave {quoted(disk.name)}")
    refuse_barred(
        scene, disk.active.file, "given an overlay beside it", hint="run as that user, or as QEMU's user"
    )
    refuse_there(scene, file, hint="check what it is")
    refuse_place(scene, file)


def _size_then(record: MomentRecord, disk: Disk, inside: int | None, scene: Scene, *, in_place: bool) -> int:
    """Bytes of the disk at the moment; refuse another size than now if the disk keeps its device."""
    size = disk.active.virtual_size
    fact = scene.files.files.get(record.covered[disk.name])
    then = fact.header.virtual_size if fact is not None and fact.header is not None else size
    if inside is not None:
        then = disk.layers[inside].virtual_size
    if then != size and in_place:
        hint = f"revert into a new QEMU: {command('revert', record.name, '--prepare')}"
        if record.state is not None and record.state.mode == "in-place":
            resize = qmp("block_resize", node_name=disk.root, size=then)
            hint = f"give it that size first: {resize}; data beyond that is lost"
        raise Unsupported(
            f"{disk.name} has {size} bytes, it had {then} at {record.name!r}",
            feature="revert to another size in place",
            hint=hint,
        )
    return then


def _refuse_written(record: MomentRecord, chain: tuple[tuple[str, str], ...], scene: Scene) -> None:
    """Refuse to open a layer once more that QEMU has open read-write: it holds the lock of that file.

    A commit that keeps its overlay leaves its base so. QEMU locks a raw layer only while it is written to.
    """
    real = scene.files.real
    nodes = scene.graph.nodes.values()
    holders = {real(one.file): one.name for one in nodes if one.driver == "qcow2" and not one.read_only}
    holders |= {real(disk.active.file): disk.active.node for disk in scene.graph.writable()}
    for file, _ in chain:
        node = holders.get(real(file))
        if node:
            new = f", or revert into a new QEMU: {command('revert', record.name, '--prepare')}"
            raise Unsupported(
                f"QEMU has {file} open read-write (node {node!r}), and cannot open it a second time for "
                f"{record.name!r}",
                feature="revert in place to a layer that is open read-write",
                hint=f"end this QEMU and start it again{new if record.state is None else ', then revert'}",
            )


def _closes(node: str) -> bool:
    """Whether QEMU closes the node with its last user: it made it by itself, or at our sync command."""
    return node.startswith(("#", "qmpsnap-")) and not is_owned_node(node)


def left_aside(record: MomentRecord, disk: Disk, scene: Scene) -> tuple[tuple[str, str], ...]:
    """Files and formats of a chain that is not open: as recorded, and as the headers still say.

    Nothing is probed: a record of before formats were written down leaves them to the overlay on each layer.
    """
    files = record.chains.get(disk.name, ())
    formats = record.formats.get(disk.name, ())
    if not files or len(files) != len(formats):
        return _told_by_headers(record, disk, scene)
    below: tuple[str, ...] = (*files[1:], "")
    for file, of, base in zip(files, formats, below, strict=True):
        fact = scene.files.files.get(file)
        is_qcow2 = of == "qcow2"  # a guest may have written any header into a raw one
        header = fact.header if fact is not None and is_qcow2 else None
        if fact is None or fact.kind == "missing" or (header is None and is_qcow2):
            raise NotInChain(f"the layer {file} of {record.name!r} is gone, or is no longer an image")
        _refuse_other_backing(record, file, header, base, scene)
    return tuple(zip(files, formats, strict=True))


def _refuse_other_backing(
    record: MomentRecord, file: str, header: Header | None, base: str, scene: Scene
) -> None:
    named = backing_path(header.backing, of=file) if header is not None and header.backing else None
    if named is None and not base:
        return
    if not base and header is not None:
        raise NotInChain(f"{file} is backed by {header.backing!r}, which was not so at {record.name!r}")
    if named is None or scene.files.real(posixpath.normpath(named)) != scene.files.real(base):
        what = repr(header.backing) if header is not None and header.backing else "nothing"
        raise NotInChain(
            f"{file} is now backed by {what}, not by {base}: the chain of {record.name!r} has changed since"
        )


def _told_by_headers(record: MomentRecord, disk: Disk, scene: Scene) -> tuple[tuple[str, str], ...]:
    """The same of an old record.

    The format of a layer is what the overlay on it records, or that of an overlay of ours.
    """
    files = record.chains.get(disk.name, ())
    above = next((file for file in record.began(disk.name) if _header(scene, file)), "")
    header = _header(scene, above)
    ours = {
        file for one in scene.files.records if isinstance(one, MomentRecord) for file in one.began(disk.name)
    }
    if not files or (header is None and files[0] not in ours):
        raise NotInChain(
            f"{record.name!r} of {disk.name} is no longer in the chain, and no overlay of it records its "
            "format",
            hint=f"it was {record.covered[disk.name]}",
        )
    found: list[tuple[str, str]] = []
    for file in files:
        fact = scene.files.files.get(file)
        if fact is not None and fact.header is not None and not above:
            found.append((file, "qcow2"))  # an overlay that we made, and none stands on it any more
            above, header = file, fact.header
            continue
        named = backing_path(header.backing, of=above) if header and header.backing else None
        expected = scene.files.real(file)
        if fact is None or fact.kind == "missing" or header is None or not header.backing_format:
            raise NotInChain(f"the layer {file} of {record.name!r} is gone, or was never recorded whole")
        if named is None or scene.files.real(posixpath.normpath(named)) != expected:
            raise NotInChain(
                f"{above} is now backed by {header.backing!r}, not by {file}: the chain of {record.name!r} "
                "has changed since"
            )
        found.append((file, header.backing_format))
        above, header = file, fact.header
    if header is not None and header.backing:
        raise NotInChain(f"{above} is backed by {header.backing!r}, which was not so at {record.name!r}")
    return tuple(found)


def _header(scene: Scene, file: str) -> Header | None:
    fact = scene.files.files.get(file)
    return fact.header if fact is not None else None


def refuse_invalid(record: MomentRecord, disk: Disk, scene: Scene) -> None:
    """Refuse a moment of the disk that a commit has written into."""
    lost = record.covered[disk.name] if disk.name in record.lost else ""
    file = lost or written_into(record.read_from(disk.name), scene.files.records)
    if file:
        raise NotInChain(
            f"{file} no longer holds a snapshot: a commit has written into it",
            hint=f"{record.name!r} of {disk.name} is lost",
        )
