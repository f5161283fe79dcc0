from __future__ import annotations

import pytest

from qmpsnap.model.graph import Disk, Filter, Layer, Node
from qmpsnap.testing.drawing import MIB, chain, graph
from tests.each import each


def test_chain_draws_a_disk_base_first() -> None:
    disk = chain("base.raw <- s1*", name="vdb", directory="/d", size_bytes=MIB, drive="drv0")
    assert disk == Disk(
        name="vdb",
        qdev="/machine/peripheral/vdb/virtio-backend",
        drive="drv0",
        root="vdb-s1",
        layers=(
            Layer("vdb-s1", "/d/s1.qcow2", "qcow2", MIB, 196_616, "/d/base.raw", "raw"),
            Layer("vdb-base.raw", "/d/base.raw", "raw", MIB, 196_616, read_only=True),
        ),
    )


@each("drawing", ["base", "base* <- s1", "base* <- s1*", "", "base <- s1 <- "])
def test_chain_refuses_a_drawing_without_one_active_layer_at_its_end(drawing: str) -> None:
    with pytest.raises(ValueError, match="is the active one"):
        chain(drawing)


def test_graph_knows_every_node() -> None:
    filtered = Disk("vdc", root="thr", filters=(Filter("thr", "throttle"),), layers=chain("c*").layers)
    drawn = graph(filtered, nodes=(Node("lone", "raw", "/x"),), vda="base <- s1*")
    assert tuple(drawn.disks) == ("vdc", "vda")
    assert {name: node.driver for name, node in drawn.nodes.items()} == {
        "vda-c": "qcow2",
        "vda-s1": "qcow2",
        "vda-base": "qcow2",
        "thr": "throttle",
        "lone": "raw",
    }
