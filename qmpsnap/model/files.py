"""What is on the disk, as far as a planner asked, and which of these files QEMU has open.

A file has many names (symlinks, hard links, relative names in headers). Here each existing file has
a single one, `FileFact.real`, which `BackingLink` also uses; compare no other.

While a machine runs, its image can be moved, replaced or removed, and QEMU keeps using the
file that it has open. Only when it opens the name again does it get the other file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import PATH_DRIVERS, Graph
from qmpsnap.model.header import Header
from qmpsnap.model.keeper import Keeper
from qmpsnap.model.layer_renames import Renames
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.record import Record

NOT_ALLOWED = "permission denied"  # the reason when we lack the permission to inspect something

Kind = Literal["missing", "regular", "directory", "block", "symlink", "other"]


class Ask(Struct, frozen=True):
    """What a planner wants to know; all paths are absolute, and duplicates are dropped.

    Attributes:
        files: Files of interest, existing or not. Of several hard links to one file the first in this
            list becomes its name, so put a chain's own files first.
        directories: Directories in which files are to be created.
        survey: Directories whose images' headers are read (not those below them).
        records: Directories of records, of which most will not exist.
        memories: Files of VM state.
        fresh: Overlays, each with its backing file: do they have data?
        states: Where our VM state files may be: directories, each with the prefix of their names.
        readers: Files, each with the name of a moment in it: does a client of ours read that?
    """

    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    survey: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    memories: tuple[str, ...] = ()
    fresh: tuple[tuple[str, str], ...] = ()
    states: tuple[tuple[str, str], ...] = ()
    readers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            force_setattr(self, field, tuple(dict.fromkeys(getattr(self, field))))

    def __or__(self, other: Ask) -> Ask:
        """Both questions in one."""
        return Ask(*(getattr(self, field) + getattr(other, field) for field in self.__struct_fields__))


class FileFact(Struct, frozen=True):
    """What exists at one path.

    Attributes:
        kind: Its kind after following symlinks; "symlink" for a dangling one; "other" also when
            it cannot be inspected.
        size: Bytes of a regular file or a block device, else 0.
        device: st_dev, 0 when it is missing.
        inode: st_ino, 0 when it is missing.
        header: An image's header; None for a raw file, and when it is broken (`problem` says so).
        real: The file's canonical name.
        backing: The canonical name of its backing file; None when its header names no local file.
        problem: Why it cannot be inspected, or what is wrong with its header; else "".
        hint: What can be done about that, or "".
        luks: Whether it holds a LUKS header, be it one that a guest wrote into its raw disk.
        modified: When it was last written, in seconds since 1970; 0 when it is missing.
        modified_ns: The same in whole nanoseconds.
        allocated: Bytes that it takes on the host; 0 when it is missing, or no regular file.
    """

    kind: Kind
    size: int = 0
    device: int = 0
    inode: int = 0
    header: Header | None = None
    real: str = ""
    backing: str | None = None
    problem: str = ""
    modified: float = 0.0
    modified_ns: int = 0
    hint: str = ""
    luks: bool = False
    allocated: int = 0

    @property
    def taken(self) -> bool:
        """Whether the name is, or may be, in use, even by a dangling symlink."""
        return self.kind != "missing"

    @property
    def unseen(self) -> bool:
        """Whether it is not even known if the file exists; `problem` and `hint` say why."""
        return self.kind == "other" and self.problem != ""


class DirFact(Struct, frozen=True):
    """Whether files can be created in a directory.

    Attributes:
        path: As in the `Ask`.
        exists: Whether it is a directory, through symlinks.
        writable: Whether we, with our effective ids, can create files in it.
        free_bytes: Space that an unprivileged process can still use; 0 when it does not exist.
        problem: Why it is not writable, or "".
    """

    path: str
    exists: bool
    writable: bool
    free_bytes: int = 0
    problem: str = ""


class BackingLink(Struct, frozen=True, order=True):
    """The header of image `file` names the file `backing` as its backing file; both are canonical names."""

    file: str
    backing: str


class Files(Struct, frozen=True):
    """The answer to an `Ask`: a snapshot of what was on the disk.

    Attributes:
        shared: Whether we see the same file system as QEMU. If not, all else is empty; if only the
            proof is missing, the directories have been surveyed all the same.
        files: By the path that was asked for.
        directories: By the path that was asked for.
        backing_links: Links of each image asked for or surveyed, and of their backing files; sorted.
        looked_in: Directories that were surveyed, by their real path.
        unreadable: What could not be read in a survey, as "PATH: REASON".
        records: Intent and moment records of the directories asked for.
        bad_records: Other files in these directories, as "PATH: REASON".
        memories: Files of VM state, by the path that was asked for.
        fresh: Those of the overlays asked for that never received data.
        images: Regular files that were read in a survey, and what these are backed by, by canonical name;
            with those called FILE.invalid, of which no link is noted.
        keepers: Images that only show that a layer is needed, by canonical name. Those that a killed process
            has left are in no link.
        renamed: Overlays of ours to which somebody has given other names, recognised by their marks. In
            `records` they have their present names.
        states: VM state files that our operations have created in the places asked for; sorted.
        readers: Those of the files and moments asked for that a client of ours reads.
        open: For each path in QEMU's graph, which file QEMU really has open there;
            filled in even if the rest is empty. Empty without a QEMU.
        barred: For each file in QEMU's graph that QEMU's user could not write, the reason; such a file is not
        moved,
            and nothing is created beside it, just because QEMU names it.
    """

    shared: bool = False
    files: Mapping[str, FileFact] = Frozen()
    directories: Mapping[str, DirFact] = Frozen()
    backing_links: tuple[BackingLink, ...] = ()
    looked_in: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    bad_records: tuple[str, ...] = ()
    memories: Mapping[str, MemoryFact] = Frozen()
    fresh: frozenset[str] = frozenset()
    images: Mapping[str, FileFact] = Frozen()
    keepers: Mapping[str, Keeper] = Frozen()
    renamed: Renames = Renames()
    states: tuple[str, ...] = ()
    readers: frozenset[tuple[str, str]] = frozenset()
    open: Mapping[str, OpenFile] = Frozen()
    barred: Mapping[str, str] = Frozen()

    def real(self, path: str) -> str:
        """Return the canonical name of a file that was asked for; any other path as it is."""
        fact = self.files.get(path)
        return fact.real if fact is not None else path

    def same(self, path: str, *others: str) -> bool:
        """Whether a path that was asked for leads to the same file as one of the others."""
        real = self.real(path)
        return any(self.real(other) == real for other in others)

    def backed_by(self, path: str, *, without: Collection[str] = ()) -> tuple[str, ...]:
        """Images backed by `path`, directly or through others, by their canonical names, sorted.

        Args:
            path: A file that was asked for (excluded from the result).
            without: Files, such as the rest of a chain, that are neither listed nor followed.
        """
        passed = {self.real(path), *(self.real(file) for file in without)}
        found: set[str] = set()
        pending = [self.real(path)]
        above: dict[str, list[str]] = {}
        for link in self.backing_links:
            above.setdefault(link.backing, []).append(link.file)
        while pending:
            for file in above.get(pending.pop(), ()):
                if file not in passed:
                    passed.add(file)
                    found.add(file)
                    pending.append(file)
        return tuple(sorted(found))


OpenState = Literal["same", "moved", "unlinked", "unknown"]
Reopens = Literal["same", "nothing", "other"]

_TEMPORARY = "vl."  # block.c: create_tmp_file, the active layer in snapshot mode


class OpenFile(Struct, frozen=True):
    """What QEMU has open under one name, and where that file is now.

    Attributes:
        name: The path as the graph has it.
        state: "same": the name leads to the file that QEMU has open. "moved": it does not, and that file
            has another name. "unlinked": that file no longer has a name. "unknown": neither is known.
        path: A path to QEMU's file; "" when none is known.
        device: st_dev of QEMU's file; 0 when it is not known.
        inode: st_ino of QEMU's file; 0 when it is not known.
        replaced: Whether the name leads to another file.
        reopens: What QEMU would get by opening its own spelling of the name again, as it does to write
            into a layer that it has read-only: a relative name is resolved in QEMU's working directory.
    """

    name: str
    state: OpenState
    path: str = ""
    device: int = 0
    inode: int = 0
    replaced: bool = False
    reopens: Reopens = "same"

    @property
    def known(self) -> bool:
        """Whether we know which file QEMU has open."""
        return self.inode != 0


def is_temporary(path: str) -> bool:
    """Whether this is the name of a temporary layer of snapshot mode (-snapshot, snapshot=on)."""
    name = path.rpartition("/")[2]
    return name.startswith(_TEMPORARY) and len(name) == len(_TEMPORARY) + 6


class OpenName(Struct, frozen=True):
    """A name under which QEMU opened a file, and the image in it.

    Attributes:
        name: The path as the graph has it.
        spelled: The name as QEMU has it.
        format: Driver of the image in it; "" when it is not a layer of a disk.
        virtual_size: Bytes that the guest sees.
    """

    name: str
    spelled: str
    format: str = ""
    virtual_size: int = 0


def open_names(graph: Graph) -> tuple[OpenName, ...]:
    """Every file that a node of the graph has open: layers, data files, extents, targets."""
    layers = {layer.file: layer for disk in graph.disks.values() for layer in disk.layers if layer.local}
    found: dict[str, OpenName] = {}
    for node in graph.nodes.values():
        if node.driver in PATH_DRIVERS and node.file.startswith("/"):
            layer = layers.get(node.file)
            image = (layer.format, layer.virtual_size) if layer is not None else ("", 0)
            found.setdefault(node.file, OpenName(node.file, node.spelled or node.file, *image))
    for file, layer in layers.items():
        if file.startswith("/"):
            found.setdefault(file, OpenName(file, file, layer.format, layer.virtual_size))
    return tuple(found.values())
