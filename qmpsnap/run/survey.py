"""Inspects files and directories, and finds which image is backed by which.

Only regular files are opened, read-only, and a file that a header names is not trusted: it is
inspected by the same rules. Blocking; `SessionTarget.look` runs it in a thread.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH114, PTH116, PTH118, PTH120

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial

from qmpsnap.model.files import NOT_ALLOWED, Ask, BackingLink, DirFact, FileFact, Files, Kind
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.header import Header, backing_path
from qmpsnap.model.keeper import Keeper, owner_of
from qmpsnap.model.layer_renames import (
    Move,
    Renames,
    find_moves,
    find_renames,
    is_other,
    moved_files,
    with_paths,
)
from qmpsnap.model.names import is_invalid_name, missing_name
from qmpsnap.model.record import MomentRecord, Record, mark_of, unnamed
from qmpsnap.run import cleanup, memory_files
from qmpsnap.run.image_headers import file_mark, has_luks, header_with_status, marks_in
from qmpsnap.run.keeper_state import state_of
from qmpsnap.run.memory_files import find_state_files
from qmpsnap.run.os_errors import hint, reason
from qmpsnap.run.record_reading import ReadBefore
from qmpsnap.run.record_search import read_records
from qmpsnap.run.safe_open import WrongKind, open_block
from qmpsnap.run.view_lock import held

_KINDS: dict[int, Kind] = {stat.S_IFREG: "regular", stat.S_IFDIR: "directory", stat.S_IFBLK: "block"}
_OF_THE_KERNEL = ("/proc/", "/sys/")  # to read there can have effects: a trace that is read is gone


def look(ask: Ask, near: Collection[str] = (), before: ReadBefore | None = None) -> Files:
    """Answer `ask`; what vanishes meanwhile is missing, what cannot be read is listed.

    Args:
        ask: What to look at.
        near: Files of the machine whose records are asked for; those of `ask` count as well.
        before: Records that were read before.
    """
    survey = _Survey()
    files = {path: survey.fact(path) for path in ask.files}
    looked_in = tuple(
        dict.fromkeys(real for path in ask.survey if (real := survey.directory(path)) is not None)
    )
    survey.follow()
    states = find_state_files(ask.states)
    known = (*near, *ask.files)
    read = partial(read_records, ask.records, tokens=states.values(), before=before)
    records, bad_records = read(near=known)
    if ask.records and (marks := survey.marks(unnamed(known, records))):
        records, bad_records = read(near=(*known, *marks))
    there = survey.marks_of({file for file, _ in _marks(records)})
    moves = find_moves(records, survey.marked, there, near)
    for place in _places_to_search(records, files, there).union(move.now for move in moves.values()):
        survey.search(place)
    renames = find_renames(records, survey.marked, there, near, moves)
    renames |= Renames(files=Frozen(_unmarked(records, moves, near)))
    files |= {now: survey.fact(now) for now in (*renames.marks.values(), *renames.files.values())}
    return Files(
        shared=True,
        files=Frozen(files),
        directories=Frozen({path: _directory_fact(path) for path in ask.directories}),
        backing_links=tuple(sorted(survey.backing_links)),
        looked_in=looked_in,
        images=Frozen(survey.images),
        keepers=Frozen(survey.keepers),
        unreadable=tuple(dict.fromkeys(survey.unreadable)),
        records=tuple(
            with_paths(record, renames) if isinstance(record, MomentRecord) else record for record in records
        ),
        renamed=renames,
        bad_records=bad_records,
        memories=Frozen(memory_files.look(ask.memories)),
        fresh=frozenset(file for file, backing in ask.fresh if cleanup.fresh(file, backing) is not None),
        states=tuple(states),
        readers=frozenset(pair for pair in ask.readers if held(*pair)),
    )


def _marks(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    return (pair for record in records if isinstance(record, MomentRecord) for pair in record.marks.items())


def _unmarked(
    records: Collection[Record], moves: Mapping[str, Move], used: Collection[str]
) -> dict[str, str]:
    """Present names of files of moved directories that have no mark, by their names in the records.

    A file of VM state is known by its inode; another one that has its name is not taken for it.
    """
    found = {}
    for file, (now, inode) in moved_files(records, moves, used).items():
        if _inode(now) == inode or (not inode and os.path.lexists(now)):
            found[file] = now
        elif inode and os.path.lexists(file) and _inode(file) != inode:
            found[file] = missing_name(file, f"{inode:x}")
    return found


def _inode(file: str) -> int:
    try:
        return os.lstat(file).st_ino
    except OSError:
        return -1


def _places_to_search(
    records: Iterable[Record], files: Collection[str], there: Mapping[str, str]
) -> set[str]:
    """Directories in which layers may have other names by now.

    They are those of layers that were asked for and are missing, and of those whose name another one has.
    """
    return {
        os.path.dirname(file)
        for file, mark in _marks(records)
        if (file in files and file not in there) or is_other(there.get(file, ""), mark)
    }


class _Survey:
    """One survey; gives each file one name, the first under which it was seen."""

    def __init__(self) -> None:
        self.backing_links: set[BackingLink] = set()
        self.unreadable: list[str] = []
        self.images: dict[str, FileFact] = {}
        self.keepers: dict[str, Keeper] = {}
        self.marked: dict[str, set[str]] = {}
        self._names: dict[tuple[int, int], str] = {}
        self._by_path: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._read: set[str] = set()
        self._pending: list[str] = []

    def fact(self, path: str) -> FileFact:
        try:
            status = os.stat(path)
        except FileNotFoundError:
            return FileFact("symlink" if os.path.islink(path) else "missing", real=os.path.realpath(path))
        except NotADirectoryError:
            return FileFact("missing", real=path)
        except (OSError, ValueError) as error:
            kind: Kind = "symlink" if os.path.islink(path) else "other"
            return FileFact(kind, real=path, problem=reason(error), hint=hint(error))
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        header, backing, luks, problem, real = None, None, False, "", self._real(path)
        if kind == "regular":
            try:
                header, backing = self._image(path, real)
                luks = header.luks is not None if header is not None else has_luks(path)
            except (OSError, ValueError) as error:
                problem = reason(error)
        return FileFact(
            kind,
            size=_size(path, kind, status.st_size),
            device=status.st_dev,
            inode=status.st_ino,
            modified=status.st_mtime,
            modified_ns=status.st_mtime_ns,
            header=header,
            real=self._named(path, status, real),
            backing=backing,
            problem=problem,
            luks=luks,
            allocated=_allocated(status) if kind == "regular" else 0,
        )

    def directory(self, path: str) -> str | None:
        """Read the headers in a directory; returns its real path, None when it cannot be read."""
        try:
            real = os.path.realpath(path)
            with os.scandir(real) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except (OSError, ValueError) as error:
            self.unreadable.append(f"{path}: {reason(error)}")
            return None
        for entry in entries:
            try:
                regular = entry.is_file()
                where = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            except OSError:  # a symlink in a loop, or behind a directory that is closed to us
                continue
            if regular and is_invalid_name(entry.name):
                with suppress(OSError, ValueError):
                    self._image(entry.path, where)
            elif regular and entry.path not in self._read:
                self._try_image(entry.path, where)
        return real

    def marks(self, files: Iterable[str]) -> tuple[str, ...]:
        """The marks in the headers of these files, and of those that were surveyed."""
        for file in files:
            if file not in self._read:
                with suppress(OSError, ValueError):
                    self._mark(self._name(file), file_mark(file))
        return tuple({mark_of(mark) for mark in self.marked})

    def marks_of(self, files: Iterable[str]) -> dict[str, str]:
        """The mark of each of these files that exists, with its inode; "" without one."""
        known = {name: mark for mark, names in self.marked.items() for name in names}
        there = {}
        for file in files:
            if file in known:
                there[file] = known[file]
            elif os.path.lexists(file):
                there[file] = ""
                with suppress(OSError, ValueError):
                    there[file] = file_mark(file)
                self._mark(self._name(file), there[file])
        return there

    def search(self, place: str) -> None:
        """Read the marks of all images in a directory."""
        with suppress(OSError):
            for mark, files in marks_in(place).items():
                self.marked.setdefault(mark, set()).update(map(self._name, files))

    def _mark(self, name: str, mark: str) -> None:
        if mark:
            self.marked.setdefault(mark, set()).add(name)

    def follow(self) -> None:
        """Read the backing files of images, down to the bases; each only once."""
        while self._pending:
            path = self._pending.pop()
            if path not in self._read:
                self._try_image(path, self._real(path))

    def _try_image(self, path: str, real: str) -> None:
        try:
            if not real.startswith(_OF_THE_KERNEL):
                self._image(path, real)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            self.unreadable.append(f"{path}: {reason(error)}")

    def _image(self, path: str, real: str) -> tuple[Header | None, str | None]:
        self._read.add(path)
        try:
            header, status = header_with_status(path)
        except WrongKind:
            return None, None
        name = self._named(path, status, real)
        backing = (
            self._stand(path, real, name, header.backing)
            if header is not None and header.backing is not None
            else None
        )
        if header is not None and header.mark and not is_invalid_name(name):
            self._mark(name, f"{header.mark}-{status.st_ino}")
        if header is not None and (owner := owner_of(name, header)) is not None:
            self.keepers[name] = keeper = Keeper(owner, state_of(path, owner), backing or "")
            if keeper.state == "left":
                self.backing_links = {link for link in self.backing_links if link.file != name}
        self.images[name] = FileFact(
            "regular",
            status.st_size,
            device=status.st_dev,
            inode=status.st_ino,
            header=header,
            real=name,
            backing=backing,
            modified=status.st_mtime,
            modified_ns=status.st_mtime_ns,
            allocated=_allocated(status),
        )
        return header, backing

    def _stand(self, path: str, real: str, image: str, recorded: str) -> str | None:
        # A relative name counts from where the image was opened: a symlink's directory, or the file's own.
        opened_as = dict.fromkeys((path, real))
        named = [found for name in opened_as if (found := backing_path(recorded, of=name)) is not None]
        there = {found: name for found in named if (name := self._existing(found)) is not None}
        there = there or {found: self._real(found) for found in named[:1]}
        if not is_invalid_name(image):
            self.backing_links.update(BackingLink(image, name) for name in there.values())
            self._pending += there
        return next(iter(there.values()), None)

    def _name(self, path: str) -> str:
        """Return the canonical name of a file, which is the same for all its hard links."""
        return self._existing(path) or self._real(path)

    def _existing(self, path: str) -> str | None:
        """The same, or None if the file does not exist; each path is looked at once."""
        name = self._by_path.get(path)
        if name is None:
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                return None
            name = self._named(path, status, self._real(path))
        return name

    def _named(self, path: str, status: os.stat_result, real: str) -> str:
        """The canonical name of a file with that status; if it has none so far, `real`."""
        name = self._names.setdefault((status.st_dev, status.st_ino), real)
        self._by_path[path] = name
        return name

    def _real(self, path: str) -> str:
        """The same as os.path.realpath, of which most directories are asked only once."""
        directory, name = os.path.split(path)
        if name in {"", ".", ".."} or not directory.startswith("/") or os.path.islink(path):
            return os.path.realpath(path)
        real = self._places.get(directory)
        if real is None:
            real = self._places[directory] = os.path.realpath(directory)
        return os.path.join(real, name)


def _directory_fact(path: str) -> DirFact:
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            return DirFact(path, exists=False, writable=False, problem="not a directory")
        space = os.statvfs(path)
        writable = os.access(path, os.W_OK | os.X_OK, effective_ids=True)
    except (OSError, ValueError) as error:
        return DirFact(path, exists=False, writable=False, problem=reason(error))
    read_only = bool(space.f_flag & os.ST_RDONLY)
    problem = "read-only file system" if read_only else "" if writable else NOT_ALLOWED
    free_bytes = space.f_bavail * space.f_frsize
    return DirFact(
        path, exists=True, writable=writable and not read_only, free_bytes=free_bytes, problem=problem
    )


def _allocated(status: os.stat_result) -> int:
    return status.st_blocks * 512


def _size(path: str, kind: Kind, size: int) -> int:
    """Bytes of a regular file or a block device, else 0."""
    if kind != "block":
        return size if kind == "regular" else 0
    try:
        descriptor = open_block(path)
    except OSError:
        return 0
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)  # st_size of a device is 0
    finally:
        os.close(descriptor)
