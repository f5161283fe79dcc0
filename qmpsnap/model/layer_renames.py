"""Finds the present names of layers that were renamed after a record was written.

Every overlay that qmpsnap creates has a mark in its header, and a record has the marks of its layers. A name
alone does not identify a layer, because another layer may have got the name since.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.names import missing_name
from qmpsnap.model.record import MomentRecord, Record, mark_of


class Renames(Struct, frozen=True):
    """Present names of layers whose names differ from those in the records.

    Attributes:
        marks: Present name of each layer, by its mark and inode (MARK-INODE). If a layer was not found, and
            another layer has its name, this is a name that no file has.
        files: The same names, by the names in the records, for records without the layer's mark.
    """

    marks: Mapping[str, str] = Frozen()
    files: Mapping[str, str] = Frozen()

    def __or__(self, later: Renames) -> Renames:
        """The union of both; `later` takes precedence."""
        return Renames(Frozen({**self.marks, **later.marks}), Frozen({**self.files, **later.files}))


class Move(Struct, frozen=True):
    """Where a directory was moved to.

    Attributes:
        now: Its name now.
        whole: Whether the record lies there, too, so that all that lay beside it has moved with it. Else the
            directory may be that of another disk, or only layers have moved.
    """

    now: str
    whole: bool


def find_renames(
    records: Iterable[Record],
    marked: Mapping[str, Collection[str]],
    there: Mapping[str, str],
    used: Collection[str] = (),
    moves: Mapping[str, Move] = Frozen(),
) -> Renames:
    """Find the layers of these records that have other names now; a copy is not recognised as the layer.

    A copy, or another machine's image, may have got the name of a layer that was moved. It is not taken for
    the layer if the machine uses the layer itself, or if the directory was moved.

    Args:
        records: The records.
        marked: Files by their marks and inodes (MARK-INODE).
        there: The present mark and inode of each existing file for which a record has a mark; "": no mark.
        used: Files of the machine's chains.
        moves: Directories that were moved (`find_moves`), by their earlier names.
    """
    marks: dict[str, str] = {}
    files: dict[str, str] = {}
    right = set()
    for file, mark in _marks(records):
        found = _the_one(marked, mark)
        moved = (found in used and file not in used) or _has_moved(file, found, moves)
        is_wrong = file in there and there[file] != mark and moved
        if is_wrong or is_other(there.get(file, ""), mark):
            files[file] = marks[mark] = found or missing_name(file, mark)
        elif file in there:
            right.add(file)
        elif found and found != file:
            files[file] = marks[mark] = found
    return Renames(Frozen(marks), Frozen({file: now for file, now in files.items() if file not in right}))


def find_moves(
    records: Iterable[Record],
    marked: Mapping[str, Collection[str]],
    there: Mapping[str, str],
    used: Collection[str],
) -> dict[str, Move]:
    """Find directories that were moved, by their earlier names.

    The machine uses a layer in the new one that, by its mark and inode, was in the earlier one. Args: as
    `find_renames`.
    """
    moves: dict[str, set[Move]] = {}
    for record in records:
        if isinstance(record, MomentRecord):
            for file, mark in record.marks.items():
                found = _the_one(marked, mark)
                place, now = posixpath.dirname(file), posixpath.dirname(found)
                if found in used and now != place and there.get(file) != mark and _name(found) == _name(file):
                    moves.setdefault(place, set()).add(Move(now, now == posixpath.dirname(record.directory)))
    return {place: move for place, to in moves.items() if (move := _most_certain(to)) is not None}


def _most_certain(moves: Collection[Move]) -> Move | None:
    """The only move of the whole directory, or else the only other one; None if there are several."""
    candidates = [move for move in moves if move.whole] or [*moves]
    return candidates[0] if len(candidates) == 1 else None


def moved_files(
    records: Iterable[Record], moves: Mapping[str, Move], used: Collection[str]
) -> dict[str, tuple[str, int]]:
    """Files of moved directories that have no mark: base images, and files of VM state.

    Returns:
        By the name in the records: the name in the new directory, and the recorded inode; 0: not recorded.
        Where nothing shows that the whole directory was moved, only base images that the machine uses.
    """
    found: dict[str, tuple[str, int]] = {}
    for record in records:
        if isinstance(record, MomentRecord):
            files = {file: 0 for file in record.files if file not in record.marks}
            if record.state is not None:
                files[record.state.file] = record.state.inode
            for file, inode in files.items():
                move = moves.get(posixpath.dirname(file))
                now = posixpath.join(move.now, _name(file)) if move is not None else ""
                if move is not None and (move.whole or (not inode and now in used)):
                    found[file] = (now, inode)
    return found


def is_other(found: str, mark: str) -> bool:
    """Whether the mark `found` of a file shows that it is another layer than the one with `mark`.

    Inodes are not compared, and a file without a mark is not another layer: an image that was copied back has
    another inode, and one that another program has rewritten has no mark.
    """
    return found != "" and mark_of(found) != mark_of(mark)


def with_paths(record: MomentRecord, renames: Renames) -> MomentRecord:
    """The record with the present names of its layers, which are found by its own marks where it has them.

    The marks also stay under the earlier names, for records that identify these layers by nothing else.
    """
    if not renames.marks:
        return record
    renamed = {file: now for file, now in renames.files.items() if file not in record.marks}
    renamed |= {file: renames.marks.get(mark, file) for file, mark in record.marks.items()}
    state = record.state
    if state is not None:
        state = replace(state, file=renamed.get(state.file, state.file))
    if state == record.state and all(renamed.get(file, file) == file for file in record.files):
        return record

    def named(files: Mapping[str, str]) -> Mapping[str, str]:
        return Frozen({disk: renamed.get(file, file) for disk, file in files.items()})

    chains = {disk: tuple(renamed.get(file, file) for file in files) for disk, files in record.chains.items()}
    return replace(
        record,
        overlays=named(record.overlays),
        covered=named(record.covered),
        branches=tuple(map(named, record.branches)),
        continued=tuple(map(named, record.continued)),
        chains=Frozen(chains),
        state=state,
        marks=Frozen({**record.marks, **{renamed[file]: mark for file, mark in record.marks.items()}}),
        stamps=Frozen({renamed.get(file, file): stamp for file, stamp in record.stamps.items()}),
    )


def _has_moved(file: str, found: str, moves: Mapping[str, Move]) -> bool:
    """Whether a layer was moved with its directory; `found`: the file that it is now, or ""."""
    move = moves.get(posixpath.dirname(file))
    return move is not None and (move.whole or posixpath.dirname(found) == move.now)


def _the_one(marked: Mapping[str, Collection[str]], mark: str) -> str:
    """The only file with this mark and inode; "" if there is none, or several."""
    files = marked.get(mark, ())
    return next(iter(files)) if len(files) == 1 else ""


def _name(file: str) -> str:
    return posixpath.basename(file)


def _marks(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    for record in records:
        if isinstance(record, MomentRecord):
            yield from record.marks.items()
