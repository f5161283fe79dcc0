from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import StillNeeded
from qmpsnap.model.files import BackingLink, Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.keeper import Keeper, KeeperState, KeptFor
from qmpsnap.plan import planner
from qmpsnap.plan.checks.keepers import without_abandoned
from qmpsnap.plan.commands.files import remove_orphan
from qmpsnap.plan.intent import Commit, Snapshot
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import ONE_DISK, planned

BASE, FILE = "/images/base.qcow2", "/images/base.t1-0123abcd.template.qcow2"
TEMPLATE, CLONE = KeptFor("template", "/srv/t1", ("/images",)), KeptFor("clone", "/srv/c")
FORK = KeptFor("fork", "/tmp/f")


class Beside(FakeFiles):
    """Files with an image beside the base image which shows that this is needed."""

    keeper = Keeper(TEMPLATE, "needed", BASE)

    def look(self, *args: object) -> Files:
        found = super().look(*args)  # type: ignore[arg-type]
        links = () if self.keeper.state == "left" else (BackingLink(FILE, BASE),)
        return replace(found, keepers=Frozen({FILE: self.keeper}), backing_links=found.backing_links + links)


def files(owner: KeptFor, state: KeeperState) -> Beside:
    made = Beside(ONE_DISK)
    made.keeper = Keeper(owner, state, BASE)
    return made


@each(
    ("owner", "state", "named", "way"),
    [
        (TEMPLATE, "needed", "the template '/srv/t1'", "qmpsnap template --remove /srv/t1"),
        (
            TEMPLATE,
            "gone",
            "which is gone",
            f"if nobody has moved the template '/srv/t1': qmpsnap template --remove {FILE}",
        ),
        (CLONE, "needed", "a clone in '/srv/c'", f"then: qmpsnap template --remove {FILE}"),
        (FORK, "needed", "machines that were forked", "wait until"),
    ],
)
def test_refusal_names_what_needs_the_layer_and_how_to_remove_that(
    owner: KeptFor, state: KeeperState, named: str, way: str
) -> None:
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda"), ONE_DISK, files=files(owner, state))
    assert caught.value.by == (FILE,)
    assert (named in caught.value.message, way in caught.value.hint) == (True, True), caught.value
    assert "--invalidate" not in caught.value.hint


def test_abandoned_image_is_removed_before_anything_else() -> None:
    plan = planned(Commit("vda"), ONE_DISK, files=files(FORK, "left"))
    assert plan.stages[0].steps == (remove_orphan(FILE, BASE),)
    assert FILE in plan.notes[-1]
    assert planned(Commit("vda"), ONE_DISK).stages == plan.stages[1:]


def test_snapshot_and_plans_without_abandoned_images_are_left_alone() -> None:
    plan = planned(Snapshot("s2"), ONE_DISK, files=files(FORK, "left"))
    assert all(step.command != "remove-orphan" for step in plan.steps)
    assert without_abandoned(plan, files(FORK, "needed").look(planner.ask(Snapshot("s2"), ONE_DISK))) is plan
