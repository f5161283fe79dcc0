"""The moments of a group, from those of its machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.moments import Moment, Moments
from qmpsnap.model.record import Member


@dataclass(frozen=True, slots=True)
class GroupMoment:
    """A moment of several machines.

    Attributes:
        name: Its name.
        id: Its id, the same on each machine.
        of: Names of the machines that it was taken of.
        held: The moment of each machine of the group that has it.
    """

    name: str
    id: str
    of: tuple[str, ...]
    held: Mapping[str, Moment]

    @property
    def complete(self) -> bool:
        """Whether each machine that it was taken of has it."""
        return set(self.held) == set(self.of)

    def to_json(self) -> dict[str, object]:
        """The same in JSON's types."""
        held = {name: moment.to_json() for name, moment in self.held.items()}
        whole = {"name": self.name, "id": self.id, "of": list(self.of), "complete": self.complete}
        return {**whole, "held": held}


def joined(listings: Mapping[str, Moments]) -> tuple[GroupMoment, ...]:
    """The moments that were taken of groups, the oldest first, from what each machine lists."""
    found: dict[tuple[str, str], dict[str, Moment]] = {}
    of: dict[tuple[str, str], Member] = {}
    for name, listing in listings.items():
        for moment in listing.moments:
            if moment.member is not None and moment.member.name == name:
                key = (moment.name, moment.member.id)
                found.setdefault(key, {})[name] = moment
                of[key] = moment.member
    whole = [
        GroupMoment(name, group, of[name, group].of, Frozen(held)) for (name, group), held in found.items()
    ]
    return tuple(sorted(whole, key=lambda one: (min(part.created for part in one.held.values()), one.name)))
