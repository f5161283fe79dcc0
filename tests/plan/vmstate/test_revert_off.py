"""A revert of a machine that is off: images go back, or overlays are made on a moment's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    AmbiguousName,
    Busy,
    Changed,
    CommandFailed,
    Incomplete,
    NotFound,
    NotInChain,
    Refused,
    Unsupported,
)
from qmpsnap.model.graph import Bitmap, InternalSnapshot
from qmpsnap.model.job import JobStatus
from qmpsnap.plan.intent import Revert, Snapshot
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_faults import refused
from tests.each import each
from tests.plan.scenes import job, planned, with_layer
from tests.run.operations import vm_of

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.plan.plan import Plan

pytestmark = pytest.mark.timeout(60)

ONE = InternalSnapshot("1", "c1")


def holding(name: str, *snapshots: InternalSnapshot, layer: int = 0) -> Disk:
    return with_layer(chain("base <- s1*", name=name), layer, snapshots=snapshots)


TWO = graph(holding("vda", ONE), holding("vdb", ONE))
ON_VDA = graph(holding("vda", ONE), chain("data*", name="vdb"))
BITMAP = with_layer(chain("base <- s1*"), 0, snapshots=(ONE,), bitmaps=(Bitmap("b", persistent=True),))


def reverted(there: Graph, intent: Revert | None = None) -> Plan:
    return planned(intent or Revert("c1"), there, off=True)


def kept_by(plan: Plan) -> str:
    name = plan.steps[0].arguments["actions"][0]["data"]["name"]
    assert name.startswith("qmpsnap-before-")
    return str(name)


def test_revert_off_closes_reverts_and_opens_each_image_and_keeps_what_it_held_meanwhile() -> None:
    plan = reverted(TWO)
    assert [(step.command, dict(step.arguments)) for step in plan.steps[1:4]] == [
        ("blockdev-del", {"node-name": "vda-s1"}),
        ("apply-snapshot", {"file": "/images/s1.qcow2", "name": "c1"}),
        (
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": "vda-s1",
                "read-only": False,
                "file": {"driver": "file", "filename": "/images/s1.qcow2", "auto-read-only": True},
                "backing": "vda-base",
            },
        ),
    ]
    assert [step.command for step in plan.steps] == [
        "transaction",
        *("blockdev-del", "apply-snapshot", "blockdev-add") * 2,
        *("blockdev-snapshot-delete-internal-sync",) * 2,
    ]
    assert [step.arguments for step in plan.steps[-2:]] == [
        {"device": root, "name": kept_by(plan)} for root in ("vda-s1", "vdb-s1")
    ]
    assert (plan.disks, plan.after, plan.run_state) == (("vda", "vdb"), TWO, "")
    assert plan.notes == ("what was written since is lost",)


def test_what_takes_a_revert_off_back_goes_to_what_was_kept() -> None:
    plan = reverted(TWO)
    keep, closed, applied, opened, *_ = plan.steps
    assert closed.undo == (replace(opened, undo=()),)
    assert [(step.command, dict(step.arguments)) for step in applied.undo] == [
        ("apply-snapshot", {"file": "/images/s1.qcow2", "name": kept_by(plan)})
    ]
    assert [(step.command, dict(step.arguments)) for step in opened.undo] == [
        ("blockdev-del", {"node-name": "vda-s1"})
    ]
    assert [step.arguments["name"] for step in keep.undo] == [kept_by(plan)] * 2
    whole = [step for stage in plan.stages if not stage.tidy for step in stage.steps]
    assert not any(step.final or step.writes for step in whole)


def test_revert_off_opens_a_base_image_alone_and_its_file_by_the_name_that_was_given() -> None:
    layer = replace(chain("base*").active, snapshots=(ONE,))
    for name, given in (("", {}), ("#block123", {}), ("file-1", {"node-name": "file-1"})):
        disk = replace(chain("base*"), layers=(replace(layer, file_node=name),))
        opened = reverted(graph(disk)).steps[3].arguments
        assert opened["backing"] is None
        assert opened["file"] == {
            "driver": "file",
            "filename": "/images/base.qcow2",
            "auto-read-only": True,
            **given,
        }


def test_revert_off_leaves_disks_that_are_named_and_removes_what_a_dead_client_kept() -> None:
    old = InternalSnapshot("2", "qmpsnap-before-deadbeef")
    there = graph(holding("vda", ONE, old), chain("data*", name="vdb"))
    plan = reverted(there, Revert("c1", leave=("vdb",)))
    assert plan.disks == ("vda",)
    assert [step.arguments["name"] for step in plan.steps[-2:]] == [kept_by(plan), old.name]
    back = reverted(there, Revert(old.name, leave=("vdb",)))  # to go back where that client began
    assert [step.arguments["name"] for step in back.steps[4:]] == [kept_by(back), old.name]


def test_revert_off_says_that_memory_is_not_loaded() -> None:
    there = graph(holding("vda", replace(ONE, vm_state_size=4096)))
    assert reverted(there).notes == (
        "what was written since is lost",
        "the memory is not loaded; to load it, start the machine with -loadvm c1",
    )


@each(
    ("there", "intent", "error", "text"),
    [
        (TWO, Revert("c1", via="hmp"), Unsupported, "--via does not apply"),
        (TWO, Revert("c1", discard=True), Unsupported, "a revert discards no layer"),
        (TWO, Revert("c9"), NotFound, "there is no snapshot 'c9'"),
        (ON_VDA, Revert("c1"), NotInChain, "is not inside the active layer of vdb"),
        (
            graph(holding("vda", ONE, layer=1)),
            Revert("c1"),
            NotInChain,
            "below the active layer\nnothing was changed\nnext: copy it out: qemu-img convert -l ",
        ),
        (graph(holding("vda", ONE, ONE)), Revert("c1"), AmbiguousName, "more than one internal snapshot"),
        (
            graph(holding("vda", ONE, InternalSnapshot("c1", "c2"))),
            Revert("c1"),
            AmbiguousName,
            "is the id of snapshot 'c2'",
        ),
        (graph(BITMAP), Revert("c1"), Unsupported, "dirty bitmap 'b'"),
        (
            graph(holding("vda", ONE), with_layer(chain("data*", name="vdb"), 0, format="raw")),
            Revert("c1"),
            Unsupported,
            "is writable and raw",
        ),
        (
            graph(with_layer(chain("a*"), 0, snapshots=(ONE,), data_file="/images/d.raw")),
            Revert("c1"),
            Unsupported,
            "keeps its data in an external file",
        ),
    ],
)
def test_revert_off_is_refused(there: Graph, intent: Revert, error: type[Refused], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        reverted(there, intent)
    assert caught.value.hint


def test_revert_off_is_refused_while_a_job_runs() -> None:
    with pytest.raises(Busy, match="is running"):
        planned(Revert("c1"), TWO, jobs=(job("commit", JobStatus.RUNNING),), off=True)


class Off(FakeTarget):
    """A drawn machine that is off."""

    def __init__(self, there: Graph) -> None:
        super().__init__(there)
        self.guest = None  # type: ignore[assignment]

    async def refuse_migrated(self) -> None:
        pass


def applied(fake: FakeTarget) -> list[tuple[str, str]]:
    """What each image went back to, in order."""
    return [
        (step.arguments["file"], step.arguments["name"])
        for step in fake.performed
        if step.command == "apply-snapshot"
    ]


def two_images() -> Graph:
    one, two = (with_layer(chain(f"{name}*", name=name), 0, snapshots=(ONE,)) for name in ("vda", "vdb"))
    return graph(one, two)


async def test_revert_off_to_an_internal_moment_leaves_chains_and_snapshots_as_they_were() -> None:
    fake = Off(two_images())
    done = await vm_of(fake).revert("c1")
    assert (done.op, done.active) == ("revert-internal", {})
    assert applied(fake) == [("/images/vda.qcow2", "c1"), ("/images/vdb.qcow2", "c1")]
    assert fake.state == two_images()


@each(("command", "disk"), [(name, disk) for name in ("apply-snapshot", "blockdev-add") for disk in (0, 1)])
async def test_a_revert_off_that_fails_goes_back_on_every_disk(command: str, disk: int) -> None:
    fake = Off(two_images())
    vm = vm_of(fake)
    plan = await vm.plan(Revert("c1"))
    at = [step for step in plan.steps if step.command == command][disk]
    fake.fail(at, refused("no"))
    with pytest.raises(CommandFailed) as caught:
        await vm.run(plan)
    assert (caught.value.changed, caught.value.left) == (Changed.NO, ())
    assert fake.state == two_images()
    tried = applied(fake)[: disk + 1]
    assert applied(fake)[disk + 1 :] == [
        (file, kept_by(plan)) for file, _ in reversed(tried[: disk + (command == "blockdev-add")])
    ]
    is_open = {
        step.arguments["node-name"]: step.command == "blockdev-add"
        for step in fake.performed
        if step.command in {"blockdev-add", "blockdev-del"}
    }
    assert all(is_open.values())


async def test_a_revert_off_whose_leftovers_stay_says_which() -> None:
    fake = Off(two_images())
    vm = vm_of(fake)
    plan = await vm.plan(Revert("c1"))
    fake.fail(plan.steps[-2], refused("no"))
    with pytest.raises(Incomplete) as caught:
        await vm.run(plan)
    assert caught.value.changed is Changed.YES
    assert kept_by(plan) in caught.value.remaining[0]
    assert [one.name for one in fake.state.disks["vda"].active.snapshots] == ["c1", kept_by(plan)]
    await vm.revert("c1")  # which removes it, too
    assert fake.state == two_images()


async def test_revert_off_to_an_external_moment_makes_overlays_to_start_from() -> None:
    fake = Off(graph(vda="base*"))
    vm = vm_of(fake)
    await vm.snapshot("before")
    done = await vm.revert("before")
    assert (done.op, set(done.prepared)) == ("revert-prepare", {"vda"})
    assert done.prepared["vda"] not in fake.state.disks["vda"].files
    with pytest.raises(NotFound, match="no disk to revert"):
        await vm.revert("before", leave=["vda"])


async def test_a_machine_that_is_off_takes_snapshots_by_the_same_plan() -> None:
    there = two_images()
    assert planned(Snapshot("n", inside=True), there, off=True) == planned(Snapshot("n", inside=True), there)
