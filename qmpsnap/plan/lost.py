"""What moments lose: by a commit the layer that held one, by another base image the way to its record."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from qmpsnap.model.moments import family
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.scene import state_questions
from qmpsnap.plan.steps import FinishRecord, KeepLost, Proof, RetireFile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from qmpsnap.model.graph import Graph
    from qmpsnap.model.record import IntentRecord, Record
    from qmpsnap.plan.scene import Scene
    from qmpsnap.plan.steps import Step

__all__ = ["losses", "retire", "unfound"]


def losses(
    records: Iterable[Record], disk: str, *, folded: Collection[str], written: Collection[str]
) -> tuple[tuple[KeepLost, ...], tuple[str, ...]]:
    """What is to be kept of moments once layers of a disk are folded.

    A moment whose overlays are all folded goes. One that is on other disks too, or began once more
    elsewhere, stays, but is lost on this disk.

    Args:
        records: All that were found.
        disk: The disk.
        folded: Files that go into another one.
        written: Files that no longer hold what they held, the folded ones and the base.

    Returns:
        The steps that note what is lost, and the ids of the moments that go.
    """
    lost, gone = [], []
    for record in records:
        if not isinstance(record, MomentRecord):
            continue
        if record.overlays and set(record.overlays.values()) <= set(folded):
            gone.append(record.id)
        elif record.covered.get(disk) in written and disk not in record.lost:
            lost.append(KeepLost(record.directory, record.id, disk))
    return tuple(lost), tuple(gone)


def retire(record: IntentRecord, records: Iterable[Record]) -> tuple[Step, ...]:
    """What puts away the folded files of a commit whose client went away, and their moments."""
    if not record.policy:  # the overlay is kept, and the record with it; or it is no commit
        return ()
    written = {*record.folded, *record.invalid}
    lost, gone = losses(records, record.disk, folded=record.folded, written=written)
    steps: list[Step] = []
    below = {file: base for files in record.chains.values() for file, base in pairwise(files)}
    # The chain is the record's word: the file's own header has to bear it out.
    proofs = {file: Proof("", below[file]) for file in record.folded if file in below}
    match record.policy:
        case "rename":
            names = record.renames
            steps += [RetireFile(one, "rename", names[one], proofs[one]) for one in names if one in proofs]
        case "remove":
            steps += [RetireFile(one, "remove", "", proof) for one, proof in proofs.items()]
    return (*steps, *lost, *((FinishRecord(record.directory, (), gone),) if gone else ()))


def unfound(scene: Scene, after: Graph) -> tuple[str, ...]:
    """Notes on moments whose records nothing leads to any more: they lie beside a base image that leaves."""
    places = set(state_questions(after, scene.state_dir))
    names: dict[str, list[str]] = {}
    for record in family(scene.graph, scene.files.records):
        if record.directory not in places and not record.deleted:
            names.setdefault(record.directory, []).append(record.name)
    return tuple(
        f"the snapshots {', '.join(found)} are not listed afterwards: their records are in {where}, which "
        "nothing of this machine leads to any more (--state-dir says where to look)"
        for where, found in names.items()
    )
