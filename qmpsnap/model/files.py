"""What is on the disk, as far as a planner asked: files, directories, and which image is backed by which.

A file has many names (symlinks, hard links, relative names in headers). Here each existing file has
a single one, `FileFact.real`, which `BackingLink` also uses; compare no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.header import Header
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.open_files import OpenFile
from qmpsnap.model.record import Record

if TYPE_CHECKING:
    from collections.abc import Collection


__all__ = [
    "NOT_ALLOWED",
    "Ask",
    "BackingLink",
    "DirFact",
    "FileFact",
    "Files",
    "Kind",
]

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
    """

    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    survey: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    memories: tuple[str, ...] = ()
    fresh: tuple[tuple[str, str], ...] = ()
    states: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            force_setattr(self, field, tuple(dict.fromkeys(getattr(self, field))))


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
        modified: When it was last written, in seconds since 1970; 0 when it is missing.
        modified_ns: The same in whole nanoseconds.
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
        states: VM state files that our operations have created in the places asked for; sorted.
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
    states: tuple[str, ...] = ()
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
