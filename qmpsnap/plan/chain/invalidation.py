"""What becomes of moments when layers go: which file holds each of them then, and which are lost.

An overlay is named after the moment at which it began, and the layer beneath it holds that moment. A commit
of the layers from `top` down to just above `base`:

    named by                    lay in                      lies afterwards
    the overlay above top       top                         in base, which reads what top read
    a folded overlay            the layer beneath it        nowhere: that was folded, or base was written into
    an overlay further up       a layer above top           where it lay
    base, or one further down   a layer below base          where it lay

Of the active layer, top has no overlay above it. With `keep_overlay` the same moments are lost. A stream into
a layer changes the bytes of none: `into` reads the same, and the layers between stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qmpsnap.model.moments import written_into
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.files import remove_state
from qmpsnap.plan.commands.records import finish_record, keep_lost, keep_place


@dataclass(frozen=True, slots=True)
class Fold:
    """What a commit does to the files of one disk.

    Attributes:
        disk: The disk.
        chain: Files of its chain before, active first.
        folded: Those that go into the base, newest first: at least one.
        base: The file that receives their data.
        given_up: Images of others that stand on what changes.
    """

    disk: str
    chain: tuple[str, ...]
    folded: tuple[str, ...]
    base: str
    given_up: tuple[str, ...] = ()

    @property
    def top(self) -> str:
        """The newest file that is folded; the base reads what it read."""
        return self.folded[0]

    @property
    def written(self) -> frozenset[str]:
        """Files that no longer hold what they held."""
        return frozenset((*self.folded[1:], self.base, *self.given_up))

    def loses(self, record: MomentRecord, disk: str) -> bool:
        """Whether a moment is lost on one of its disks.

        Also of a moment that was moved into the base already, by a client that went away right after that.
        """
        covered = record.covered[disk]
        if disk == self.disk and covered in self.chain:
            above = self.chain[: self.chain.index(self.top)][-1:]
            there = covered == self.base and not {*above}.isdisjoint(record.began(disk))
            return covered in self.written and not there
        return not {*self.folded, *self.written}.isdisjoint(
            record.read_from(disk)
        )  # it was left aside, or is another machine's


@dataclass(frozen=True, slots=True)
class Fates:
    """What becomes of the moments by a commit.

    Attributes:
        steps: What writes that down, and removes the VM state of moments that end.
        ended: Records of moments that no disk holds any more.
        notes: The same in words, of what is lost and of what lies elsewhere.
        lost: Names of the moments that are lost on a disk, or wholly.
    """

    steps: tuple[Step, ...] = ()
    ended: tuple[MomentRecord, ...] = ()
    notes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def fates(records: Iterable[Record], fold: Fold) -> Fates:
    """What becomes of each moment by a commit that succeeds.

    A moment that is lost on all of its disks ends, and its VM state with it. One that is on other disks too
    stays, lost on this one. The records may not have that of the commit itself.
    """
    known = tuple(records)
    good = healed(known, fold.disk, fold.folded)
    steps: list[Step] = []
    ended: list[MomentRecord] = []
    notes: list[str] = []
    lost: list[str] = []
    for record in known:
        if not isinstance(record, MomentRecord):
            continue
        before = {*record.lost, *_spoilt(record, good)}
        new = [disk for disk in record.covered if disk not in before and fold.loses(record, disk)]
        if record.covered and {*record.covered} <= {*before, *new}:
            ended.append(record)
        else:
            steps += _kept_lost(record, {*before, *new})
            if fold.disk not in {*before, *new} and fold.top in _read(record, fold.disk):
                steps.append(keep_place(record.directory, record.id, fold.disk, fold.folded, fold.base))
                if record.covered[fold.disk] == fold.top and fold.disk in record.disks:
                    notes.append(
                        f"the snapshot {record.name!r} of {fold.disk} is held by {fold.base} from then on"
                    )
        named = [disk for disk in new if disk in record.disks]
        if named:
            lost.append(record.name)
            notes.append(_loss(record, named, fold.base, ends=record in ended))
    steps += _states(ended)
    return Fates(tuple(steps), tuple(ended), tuple(notes), tuple(dict.fromkeys(lost)))


def settled(
    records: Iterable[Record], fold: Fold, *, keep_overlay: bool = False
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """What is written down, and removed, once a commit has succeeded, and notes on what it costs.

    One that keeps the overlay leaves its own record instead.
    """
    known = tuple(records)
    fate = fates(known, fold)
    if keep_overlay:
        why = "is lost: other data is written into its layers"
        return (), tuple(f"the snapshot {name!r} {why}" for name in fate.lost)
    return (*fate.steps, *finish(healed(known, fold.disk, fold.folded), fate.ended)), fate.notes


def _spoilt(record: MomentRecord, records: tuple[Record, ...]) -> list[str]:
    """Disks on which the moment was lost by earlier commits that failed, or kept the overlay."""
    return [disk for disk in record.covered if written_into(record.read_from(disk), records)]


def _kept_lost(record: MomentRecord, disks: set[str]) -> list[Step]:
    new = (disk for disk in record.covered if disk in disks and disk not in record.lost)
    return [keep_lost(record.directory, record.id, disk) for disk in new]


def _loss(record: MomentRecord, disks: list[str], base: str, *, ends: bool) -> str:
    where = f"{', '.join(disks)} (newer data goes into {base})"
    state = f", and its VM state {record.state.file} with it" if ends and record.state is not None else ""
    return f"the snapshot {record.name!r} is lost on {where}{state}"


def _read(record: MomentRecord, disk: str) -> tuple[str, ...]:
    """Files that the moment is read from on that disk; none where it is not on that."""
    return record.read_from(disk) if disk in record.covered else ()


def streamed(records: Iterable[Record], disk: str, *, into: str, gone: tuple[str, ...]) -> tuple[Step, ...]:
    """What notes that a stream into a layer took those below it out of the chains of moments."""
    known = tuple(records)
    good = healed(known, disk, gone)
    steps: list[Step] = []
    ended: list[MomentRecord] = []
    for one in known:
        if not isinstance(one, MomentRecord):
            continue
        spoilt = {*_spoilt(one, good)}
        if spoilt and {*one.covered} <= {*one.lost, *spoilt}:
            ended.append(one)
            continue
        steps += _kept_lost(one, spoilt)
        if into in _read(one, disk) and {*gone} & {*_read(one, disk)}:
            steps.append(keep_place(one.directory, one.id, disk, gone))
    return (*steps, *_states(ended), *finish(good, tuple(ended)))


def _states(ended: Iterable[MomentRecord]) -> list[Step]:
    """What removes the VM state of moments that end."""
    return [remove_state(one.state.file, one.id, one.state.tag) for one in ended if one.state is not None]


def healed(records: Iterable[Record], disk: str, gone: tuple[str, ...]) -> tuple[IntentRecord, ...]:
    """Records of commits that failed, or kept the overlay, and that nobody needs once these layers are gone.

    All that such a commit has written its top covers. With the top's data in another layer that does; what
    was lost by it is then noted with the moments.
    """
    return tuple(
        one
        for one in records
        if isinstance(one, IntentRecord) and one.disk == disk and one.invalid and one.top in gone
    )


def repeated(
    records: Iterable[Record],
    id: str,  # noqa: A002 - a record's word
    disk: str,
    *,
    top: str,
    invalid: Collection[str],
) -> tuple[IntentRecord, ...]:
    """Records of earlier commits that say nothing which that of a new one does not say too.

    Args:
        records: Those that there are.
        id: That of the new one.
        disk: Its disk.
        top: The newest file that it folds.
        invalid: Files that hold no moment from its start on.
    """
    return tuple(
        one for one in healed(records, disk, (top,)) if one.id != id and {*one.invalid} <= {*invalid}
    )


def finish(ids: tuple[IntentRecord, ...], ended: tuple[MomentRecord, ...] = ()) -> tuple[Step, ...]:
    """What removes records wherever they lie."""
    records: tuple[Record, ...] = (*ids, *ended)
    where = dict.fromkeys(one.directory for one in records)
    return tuple(
        finish_record(
            place,
            tuple(one.id for one in ids if one.directory == place),
            tuple(one.id for one in ended if one.directory == place),
        )
        for place in where
    )


def fold_of(record: IntentRecord) -> Fold | None:
    """What a commit does, by its record; None when the record lacks what has to be known."""
    chain = record.chains.get(record.disk, ())
    if not record.folded or record.folded[-1] not in chain[:-1]:
        return None
    return Fold(
        disk=record.disk,
        chain=chain,
        folded=record.folded,
        base=chain[chain.index(record.folded[-1]) + 1],
        given_up=tuple(file for file in record.invalid if file not in chain),
    )
