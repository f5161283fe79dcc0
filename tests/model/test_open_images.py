from __future__ import annotations

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.image_chain import ImageLayer
from qmpsnap.model.open_images import OpenImages
from qmpsnap.model.step import DropNode, MoveRoot, Overlay, PutOverlays, Root, Step
from qmpsnap.plan.commands.images import open_layer
from qmpsnap.plan.commands.jobs import job_complete

LAYER = ImageLayer("/d/s1", "qcow2", 1 << 20, 1, 2)
COPY = Root("vda", "copy", "/d/copy", "qcow2", None, ())


def test_an_opened_layer_is_known_by_its_path_its_files_node_and_what_is_beneath() -> None:
    step = open_layer("vda", LAYER, below="under", active=True)
    node = step.arguments["node-name"]
    opened = OpenImages().after(step).with_root("vda", node)
    assert opened.roots == {"vda": node}
    assert opened.files == {node: "/d/s1"}
    assert opened.file_nodes == {node: step.arguments["file"]["node-name"]}
    assert list(opened.beneath(node)) == ["under"]


def test_a_snapshot_moves_the_roots_at_once() -> None:
    overlay = Overlay("vda", "old", "new", "/d/new", "/d/s1", "us")
    taken = Step(on="qmp", command="transaction", effect=PutOverlays((overlay,)))
    opened = OpenImages(roots=Frozen(vda="old", vdb="other")).after(taken)
    assert opened.roots == {"vda": "new", "vdb": "other"}
    assert list(opened.beneath("new")) == ["old"]


def test_a_pivot_moves_the_root_when_its_job_has_ended_well_and_not_before() -> None:
    asked = OpenImages(roots=Frozen(vda="old")).after(job_complete("j", MoveRoot(COPY)))
    assert asked.roots == {"vda": "old"}
    assert asked.ended("other", well=True) == asked
    assert asked.ended("j", well=True) == OpenImages(roots=Frozen(vda="copy"))
    assert asked.ended("j", well=False) == OpenImages(roots=Frozen(vda="old"))


def test_a_root_that_moves_without_a_job_moves_at_once() -> None:
    moved = Step(on="qmp", command="qom-set", effect=MoveRoot(COPY))
    assert OpenImages(roots=Frozen(vda="old")).after(moved).roots == {"vda": "copy"}


def test_other_steps_change_nothing() -> None:
    opened = OpenImages(roots=Frozen(vda="old"))
    deleted = Step(on="qmp", command="blockdev-del", effect=DropNode("n"))
    probe = Step(on="qmp", command="blockdev-add", kind="probe", arguments=Frozen(filename="/f"))
    assert (opened.after(deleted), opened.after(probe)) == (opened, opened)
