"""The moment that somebody means by a name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.errors import AmbiguousName, NotFound
from qmpsnap.model.moments import find_moments

if TYPE_CHECKING:
    from qmpsnap.model.moments import Moment
    from qmpsnap.plan.scene import Scene

__all__ = ["moment_named"]


def moment_named(name: str, scene: Scene) -> Moment:
    """The one moment of that name.

    Raises:
        NotFound: When no moment has it.
        AmbiguousName: When two have it.
    """
    moments = find_moments(scene.graph, scene.files.records)
    found = moments.named(name)
    if not found:
        names = ", ".join(dict.fromkeys(repr(one.name) for one in moments.moments))
        unread = "".join(f"; not read: {reason}" for reason in scene.files.bad_records)
        raise NotFound(f"there is no snapshot {name!r}", hint=f"there are: {names or 'none'}{unread}")
    if len(found) > 1:
        raise AmbiguousName(
            f"{name!r} is the name of {len(found)} snapshots: {', '.join(one.kind for one in found)}",
            candidates=[f"{one.kind}, on {', '.join(one.disks)}" for one in found],
            hint="remove an external one by commit or stream",
        )
    return found[0]
