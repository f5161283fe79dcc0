"""Layers that somebody has renamed: which name a layer of a record has now.

Every overlay of ours has a mark in its header, and a record keeps the marks of its layers. A name alone does
not tell a layer: it may have been given to another one since.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct
from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.names import missing_name
from qmpsnap.model.record import MomentRecord, Record, mark_of


class Renames(Struct, frozen=True):
    """Layers that are not where records say.

    Attributes:
        marks: Present names, by the layers' marks with their inodes (MARK-INODE); for a layer that was not
            found, and whose name another one has, a name that no file has.
        files: The same by the names in the records, for records without the layer's mark.
    """

    marks: Mapping[str, str] = Frozen()
    files: Mapping[str, str] = Frozen()

    def __or__(self, later: Renames) -> Renames:
        """Both; where they differ, what was seen later."""
        return Renames(Frozen({**self.marks, **later.marks}), Frozen({**self.files, **later.files}))


def find_renames(
    records: Iterable[Record], marked: Mapping[str, Collection[str]], there: Mapping[str, str]
) -> Renames:
    """Where the layers of these records are that are not where the records say; no copy is taken for one.

    Args:
        records: The records.
        marked: Files by their marks with their inodes.
        there: For each file of which a record has a mark, and that exists, what it has for a mark; "": none.
    """
    marks: dict[str, str] = {}
    files: dict[str, str] = {}
    right = set()
    for file, mark in _marks(records):
        found = next(iter(marked.get(mark, ()))) if len(marked.get(mark, ())) == 1 else ""
        if is_other(there.get(file, ""), mark):
            files[file] = marks[mark] = found or missing_name(file, mark)
        elif file in there:
            right.add(file)
        elif found and found != file:
            files[file] = marks[mark] = found
    return Renames(Frozen(marks), Frozen({file: now for file, now in files.items() if file not in right}))


def is_other(found: str, mark: str) -> bool:
    """Whether a file with the mark `found` is another layer than that with `mark`; not so without a mark.

    An image that was copied back, or rewritten by another program, has another inode, or no mark.
    """
    return found != "" and mark_of(found) != mark_of(mark)


def with_paths(record: MomentRecord, renames: Renames) -> MomentRecord:
    """The record with layers under the names that they have now: by its own marks, as far as it has any.

    The marks stay under the names of before, too, for the records that have no other sign of these layers.
    """
    if not renames.marks:
        return record
    renamed = {file: now for file, now in renames.files.items() if file not in record.marks}
    renamed |= {file: renames.marks.get(mark, file) for file, mark in record.marks.items()}
    if all(renamed.get(file, file) == file for file in record.files):
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
        marks=Frozen({**record.marks, **{renamed[file]: mark for file, mark in record.marks.items()}}),
    )


def _marks(records: Iterable[Record]) -> Iterator[tuple[str, str]]:
    for record in records:
        if isinstance(record, MomentRecord):
            yield from record.marks.items()
