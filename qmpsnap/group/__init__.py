"""Several machines at one instant: their moments are taken, reverted to and deleted together.

    group = qmpsnap.Group({"web": vm1, "db": vm2})
    await group.checkpoint("before-upgrade")
    await group.revert("before-upgrade")

All machines are planned before anything is changed on any. The guests are paused together, and none runs
again before the moment of each is taken. Each moment records the group's machines, so that a moment that some
of them lack is recognised: it is listed as incomplete, and no group can be reverted to it.
"""

from qmpsnap.group.facade import Group, GroupIntent
from qmpsnap.group.moments import GroupMoment
from qmpsnap.group.together import GroupDone

__all__ = ["Group", "GroupDone", "GroupIntent", "GroupMoment"]
