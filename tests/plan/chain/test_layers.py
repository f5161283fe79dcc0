from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Layer, Node
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.chain.layers import delete_owned, layer_index, recorded_like
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import NOW, STATE, scene

ONE = graph(vda="base <- s1*")
OVERLAY = Layer("o", "/a/b/o.qcow2", "qcow2", 1, backing="../base.qcow2")
BASE = Layer("b", "/a/base.qcow2", "qcow2", 1)


def test_layer_index_knows_moments_of_this_disk_alone() -> None:
    files = FakeFiles(ONE)
    files.records += [
        MomentRecord("1", "gone", NOW, {"vda": "/images/s0.qcow2"}, directory=STATE),
        MomentRecord("2", "mine", NOW, {"vda": "/images/s1.qcow2"}, directory=STATE),
        MomentRecord("3", "base", NOW, {"vdb": "/images/s1.qcow2"}, directory=STATE),
    ]
    here = scene(files=files)
    assert layer_index(here, ONE.disks["vda"], "mine") == 0
    assert layer_index(here, ONE.disks["vda"], "base") == 1


@each(
    ("overlay", "base", "name"),
    [
        (OVERLAY, BASE, "../base.qcow2"),
        (OVERLAY, replace(BASE, file="/a/b/base.qcow2"), "base.qcow2"),
        (OVERLAY, replace(BASE, local=False), None),
        (OVERLAY, None, None),
        (replace(OVERLAY, backing="/a/base.qcow2"), BASE, None),
        (replace(OVERLAY, backing="/a/base.qcow2"), replace(BASE, encrypted=True), "/a/base.qcow2"),
        (replace(OVERLAY, backing="file:base.qcow2"), BASE, None),
        (replace(OVERLAY, backing=None), BASE, None),
        (replace(OVERLAY, file="o.qcow2"), BASE, None),
    ],
)
def test_recorded_like_keeps_a_relative_name_relative(
    overlay: Layer, base: Layer | None, name: str | None
) -> None:
    assert recorded_like(scene(), overlay, (base,) if base else ()) == name


@each(
    ("overlay", "name"),
    [(OVERLAY, "../base.qcow2"), (replace(OVERLAY, backing="/dev/fdset/1"), "/a/base.qcow2")],
)
@each("spelled", ["a/base.qcow2", "/dev/fdset/1"])
def test_recorded_like_names_the_file_when_qemus_own_name_leads_nowhere(
    overlay: Layer, name: str, spelled: str
) -> None:
    there = scene(graph(nodes=(Node("f", "file", "/a/base.qcow2", spelled=spelled),), vda="base*"))
    assert recorded_like(there, overlay, (BASE,)) == name


def test_delete_owned_frees_the_nodes_that_we_added_and_no_others() -> None:
    layers = [replace(OVERLAY, node=node) for node in ("qmpsnap-a-00000000", "qmpsnap-00000000", "s1")]
    assert delete_owned(layers) == (blockdev_del("qmpsnap-a-00000000"),)
