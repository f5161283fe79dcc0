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
        of: Names of all machines of which it was taken.
        held: The moment of each machine of this group that has it, by name.
    """

    name: str
    id: str
    of: tuple[str, ...]
    held: Mapping[str, Moment]

    @property
    def complete(self) -> bool:
        """Whether each machine of which it was taken still has it."""
        return set(self.held) == set(self.of)

    def to_json(self) -> dict[str, object]:
        """Return the moment in JSON's types."""
        held = {name: moment.to_json() for name, moment in self.held.items()}
        moments = {"name": self.name, "id": self.id, "of": list(self.of), "complete": self.complete}
        return {**moments, "held": held}


def join(listings: Mapping[str, Moments]) -> tuple[GroupMoment, ...]:
    """Join the moments that each machine lists to moments of groups, the oldest first."""
    parts: dict[tuple[str, str], dict[str, Moment]] = {}
    of: dict[tuple[str, str], Member] = {}
    for name, listing in listings.items():
        for moment in listing.moments:
            if moment.member is not None and moment.member.name == name:
                key = (moment.name, moment.member.id)
                parts.setdefault(key, {})[name] = moment
                of[key] = moment.member
    moments = [
        GroupMoment(name, group, of[name, group].of, Frozen(held)) for (name, group), held in parts.items()
    ]
    return tuple(
        sorted(moments, key=lambda moment: (min(part.created for part in moment.held.values()), moment.name))
    )
