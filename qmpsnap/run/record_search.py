"""Finds a machine's records among those of all machines that keep theirs in the same directories. Blocking.

The name of a moment's record holds keys of the layers that lead to it, so those of other machines need not be
read. A directory may hold links to others: beside the base image of another disk that shares moments, or
beside a base image that its disk no longer has (docs/decisions/finding-records.md). Where another program has
taken the base image away, there is no link: directories of records that lie in the same place are searched,
too, but only for moments that a key leads to. A directory that is reached by two paths (a bind mount) is read
by the first one.
"""

# Descriptors need os, and paths stay as QEMU spells them:
# ruff: noqa: PTH118, PTH120, PTH208

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from qmpsnap.model.names import digest, is_state_directory, layer_key
from qmpsnap.model.record import IntentRecord, MomentRecord, Record, keys_of
from qmpsnap.run.os_errors import reason
from qmpsnap.run.record_reading import ReadBefore, open_trusted, read_record

_RECORD = re.compile(r"(intent|moment)-.*\.json", re.DOTALL)
_LINK = "elsewhere-"
_LISTINGS = 5  # how often records are listed while others give them names with other keys
_DIRECTORIES = 64  # beyond how many no link is followed: those that it leads to may hold others

_Leading = tuple[MomentRecord, frozenset[str]]
"""A moment's record, and the layers that go on from it, with their marks."""

_R = TypeVar("_R", IntentRecord, MomentRecord)
_T = TypeVar("_T")


class _Listing:
    """The names in an open directory of records, sorted by what they are.

    Attributes:
        moments: Names of the records of moments.
        many: Names of those with so many layers that these have no keys.
        intents: Names of the records of intents.
        by_key: Names of the moments with a key.
        links: Names of links.
        bad: Names that moments' records do not have, each with the reason.
    """

    def __init__(self, descriptor: int) -> None:
        self.moments: list[str] = []
        self.many: list[str] = []
        self.intents: list[str] = []
        self.by_key: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.bad: dict[str, str] = {}
        for name in os.listdir(descriptor):
            if name.startswith("moment-") and name.endswith(".json"):
                self._add(name)
            elif name.startswith("intent-") and name.endswith(".json"):
                self.intents.append(name)
            elif name.startswith(_LINK):
                self.links.append(name)

    def _add(self, name: str) -> None:
        try:
            keys = keys_of(name)
        except ValueError as error:
            self.bad[name] = str(error)
            return
        self.moments.append(name)
        if not keys:
            self.many.append(name)
        for key in keys:
            self.by_key.setdefault(key, []).append(name)

    def wanted(self, keys: Collection[str], tokens: Collection[str] = ()) -> set[str]:
        """Names of the records that these keys lead to, or whose ids end in one of the tokens."""
        names = {name for key in keys for name in self.by_key.get(key, ())}
        return names.union(name for token in tokens for name in self.moments if f"{token}." in name)


def read_records(
    directories: Sequence[str],
    *,
    near: Collection[str] | None = None,
    tokens: Collection[str] = (),
    before: ReadBefore | None = None,
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """Read the records in `directories`, and in those that links there lead to; one that is missing has none.

    Args:
        directories: Where to look.
        near: Files of a machine. Of moments only the records that these lead to are read, directly or through
            others of them, and some that have such a key by chance. None: all are read.
        tokens: Ends of the ids of records that are read in any case.
        before: What the caller has read before; those that are the same files are not read again.

    Returns:
        The records, by directory and name, and each file that is not a trusted record, as "PATH: REASON".
    """
    return _listing_again(partial(_read_all, directories, near, tokens, before or ReadBefore()))


def _listing_again(look: Callable[..., _T]) -> _T:
    """Look once more when a record that was listed is gone: it is finished, or its keys have changed."""
    for _ in range(_LISTINGS - 1):
        with suppress(FileNotFoundError):
            return look(passing_over=False)
    return look(passing_over=True)


def _read_all(
    directories: Sequence[str],
    near: Collection[str] | None,
    tokens: Collection[str],
    before: ReadBefore,
    *,
    passing_over: bool,
) -> tuple[tuple[Record, ...], tuple[str, ...]]:
    """See `read_records`.

    Raises:
        FileNotFoundError: When a record that was listed is gone, unless such records are passed over.
    """
    bad: list[str] = []
    opened = _open_all(directories, bad)
    beside = _open_beside(directories, opened) if near is not None else {}
    own = set(opened)
    opened |= beside
    try:
        read: dict[tuple[str, str], Record] = {}
        keys = {layer_key(file) for file in near or ()}
        pending = {
            (directory, name)
            for directory, (_, listing) in opened.items()
            for name in (
                *(listing.intents if directory in own else ()),
                *listing.many,
                *(listing.moments if near is None else listing.wanted(keys, tokens)),
            )
        }
        seen: set[tuple[str, str]] = set()
        reached = _Reached(near or ())
        while pending:
            seen |= pending
            for directory, name in pending:
                try:
                    read[directory, name] = read_record(opened[directory][0], name, directory, before)
                except FileNotFoundError:
                    if not passing_over:
                        raise
                except (OSError, ValueError) as error:
                    bad.append(f"{os.path.join(directory, name)}: {reason(error)}")
            new = (record for place in pending if (record := read.get(place)) is not None)
            keys = {layer_key(file) for file in reached.add(new)}
            pending = {
                (directory, name)
                for directory, (_, listing) in opened.items()
                for name in listing.wanted(keys)
            } - seen
    finally:
        for descriptor, _ in opened.values():
            os.close(descriptor)
    order = {directory: index for index, directory in enumerate(opened)}
    found = sorted(read, key=lambda place: (order[place[0]], place[1]))
    return tuple(read[place] for place in found), tuple(sorted(bad))


def find_record(directory: str, record_id: str, kind: type[_R]) -> _R | None:
    """The record of that kind and id in the directory; None when there is none that is trusted.

    Raises:
        OSError: When the directory cannot be read.
    """
    return _listing_again(partial(_find, directory, record_id, kind))


def _find(directory: str, record_id: str, kind: type[_R], *, passing_over: bool) -> _R | None:
    """See `find_record`.

    Raises:
        FileNotFoundError: When a moment's record that was listed is gone, unless such are passed over.
    """
    try:
        descriptor = open_trusted(directory)
    except (FileNotFoundError, ValueError):
        return None
    moment = kind is MomentRecord
    try:
        for name in os.listdir(descriptor) if moment else (f"intent-{record_id}.json",):
            if record_id not in name or not _RECORD.fullmatch(name):
                continue
            try:
                record = read_record(descriptor, name, directory)
            except FileNotFoundError:
                if moment and not passing_over:
                    raise
            except (OSError, ValueError):
                continue
            else:
                if isinstance(record, kind) and record.id == record_id:
                    return record
    finally:
        os.close(descriptor)
    return None


def names_of(record: Record, descriptor: int) -> list[str]:
    """Names of the record's file in an open directory; the keys in that of a moment may have changed."""
    if isinstance(record, IntentRecord):
        return [record.file_name]
    return [name for name in os.listdir(descriptor) if name.startswith(record.prefix)]


def others_near(record: MomentRecord, descriptor: int, *, sample: int) -> dict[str, MomentRecord]:
    """Other moments' records in an open directory, by name: those with a layer that holds this one, and some.

    Args:
        record: The moment's record.
        descriptor: Its directory.
        sample: How many others, drawn at random.
    """
    listing = _Listing(descriptor)
    near = listing.wanted({layer_key(file) for file in record.covered.values()})
    others = {}
    for name in near.union(random.sample(listing.moments, min(sample, len(listing.moments)))):
        try:
            other = read_record(descriptor, name, record.directory)
        except (OSError, ValueError):
            continue
        if isinstance(other, MomentRecord) and other.id != record.id:
            others[name] = other
    return others


def link_name(directory: str) -> str:
    """Name of a link to that directory of records."""
    return f"{_LINK}{digest(directory)}"


def _open_all(directories: Iterable[str], bad: list[str]) -> dict[str, tuple[int, _Listing]]:
    """Open and list the directories, and those that links in them lead to; each once, by its first path."""
    opened: dict[str, tuple[int, _Listing]] = {}
    seen: set[tuple[int, int]] = set()
    asked = dict.fromkeys(directories)
    pending = list(asked)
    for directory in pending:  # which grows
        if directory not in asked and len(opened) >= _DIRECTORIES:
            break
        try:
            descriptor = open_trusted(directory)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            bad.append(f"{directory}: {reason(error)}")
            continue
        if not _is_new(descriptor, seen):
            continue
        listing = _Listing(descriptor)
        opened[directory] = descriptor, listing
        bad += (f"{os.path.join(directory, name)}: {why}" for name, why in listing.bad.items())
        for target in _linked(listing, descriptor):
            if target not in pending:
                pending.append(target)
    return opened


def _is_new(descriptor: int, seen: set[tuple[int, int]]) -> bool:
    """Add an open directory to those that were seen; if it is one of them, close it and return False."""
    status = os.fstat(descriptor)
    if (identity := (status.st_dev, status.st_ino)) in seen:
        os.close(descriptor)
        return False
    seen.add(identity)
    return True


def _open_beside(
    directories: Iterable[str], known: Mapping[str, tuple[int, _Listing]]
) -> dict[str, tuple[int, _Listing]]:
    """Open and list other directories of records beside these; what cannot be read is passed over."""
    pending = []
    seen = {(status.st_dev, status.st_ino) for status in (os.fstat(opened) for opened, _ in known.values())}
    for place in dict.fromkeys(os.path.dirname(path) for path in directories if is_state_directory(path)):
        with suppress(OSError):
            pending += [os.path.join(place, name) for name in sorted(os.listdir(place))]
    pending = [path for path in pending if is_state_directory(path) and path not in known]
    found: dict[str, tuple[int, _Listing]] = {}
    for path in pending:  # which grows
        with suppress(OSError, ValueError):
            descriptor = open_trusted(path)
            if not _is_new(descriptor, seen):
                continue
            found[path] = descriptor, _Listing(descriptor)
            linked = _linked(found[path][1], descriptor)
            pending += [to for to in linked if to not in known and to not in pending]
    return found


def _linked(listing: _Listing, descriptor: int) -> Iterator[str]:
    """The directories of records that the links in one lead to."""
    for name in listing.links:
        with suppress(OSError):
            target = os.readlink(name, dir_fd=descriptor)
            if is_state_directory(target):
                yield target


class _Reached:
    """The files of a machine, and every layer of the moments that they lead to, by its names and its mark.

    A moment whose layer another one shares is not reached by that: it may be another machine's.
    """

    def __init__(self, near: Collection[str]) -> None:
        self._layers = set(near)
        self._going_on: set[str] = set()
        self._by_going_on: dict[str, list[_Leading]] = {}
        self._by_held: dict[str, list[_Leading]] = {}

    def add(self, records: Iterable[Record]) -> set[str]:
        """Take more records into account; return the layers that are reached since."""
        pending: list[_Leading] = []
        for record in records:
            if isinstance(record, MomentRecord):
                going_on = record.marked(record.all_going_on)
                held = record.marked(record.covered.values())
                for file in going_on:
                    self._by_going_on.setdefault(file, []).append((record, going_on))
                for file in held:
                    self._by_held.setdefault(file, []).append((record, going_on))
                if not (going_on.isdisjoint(self._layers) and held.isdisjoint(self._going_on)):
                    pending.append((record, going_on))
        more: set[str] = set()
        done: set[str] = set()
        while pending:
            record, going_on = pending.pop()
            if record.id in done:
                continue
            done.add(record.id)
            layers = record.marked(record.files)
            for file in layers - self._layers:
                pending += self._by_going_on.get(file, ())
            for file in going_on - self._going_on:
                pending += self._by_held.get(file, ())
            more |= layers - self._layers
            self._layers |= layers
            self._going_on |= going_on
        return more
