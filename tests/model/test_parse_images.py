from __future__ import annotations

import json

import pytest

from qmpsnap.errors import Malformed
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.open_images import OpenImages
from qmpsnap.model.parse import GraphMoved
from qmpsnap.model.parse_images import parse_images


def node(name: str, file: str, drv: str = "qcow2", *, below: str = "", ro: bool = True) -> dict[str, object]:
    image = {"virtual-size": 1 << 20, "actual-size": 4096}
    backing = {"backing_file": below} if below else {}
    return {"node-name": name, "drv": drv, "file": file, "ro": ro, "image": image, **backing}


JSON = "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "file", "filename": "/d/s1"}})
CHAIN = [
    node("n2", "/d/s2", below=JSON, ro=False),
    node("f2", "/d/s2", "file", ro=False),
    node("n1", JSON, below="/d/base"),
    node("f1", "/d/s1", "file"),
    node("n0", "/d/base"),
    node("f0", "/d/base", "file"),
]
OPENED = OpenImages(
    roots=Frozen(vda="n2"),
    files=Frozen(n2="/d/s2", n1="/d/s1", n0="/d/base"),
    file_nodes=Frozen(n1="f1"),
    below=Frozen(n2="n1", n1="n0"),
)


def test_chain_is_joined_by_the_names_of_backing_nodes_and_has_the_paths_that_were_opened() -> None:
    graph = parse_images(CHAIN, OPENED)
    disk = graph.disks["vda"]
    assert [(layer.node, layer.file, layer.file_node, layer.read_only) for layer in disk.layers] == [
        ("n2", "/d/s2", "f2", False),
        ("n1", "/d/s1", "f1", True),
        ("n0", "/d/base", "f0", True),
    ]
    assert (disk.qdev, disk.root, disk.read_only) == ("vda", "n2", False)
    assert graph.nodes["n2"].backing == "/d/s1"


def test_a_jobs_filter_between_the_layers_is_no_layer() -> None:
    filtered = [*CHAIN, node("#block1", JSON, "commit_top", below=JSON)]
    assert parse_images(filtered, OPENED).chains() == {"vda": ("/d/s2", "/d/s1", "/d/base")}


def test_of_two_nodes_of_one_base_each_disk_reads_its_own() -> None:
    nodes = [
        node("a1", "/d/a", below="/d/base", ro=False),
        node("b1", "/d/b", below="/d/base", ro=False),
        node("b0", "/d/base"),
        node("a0", "/d/base"),
    ]
    opened = OpenImages(roots=Frozen(vda="a1", vdb="b1"), below=Frozen(a1="a0", b1="b0"))
    graph = parse_images(nodes, opened)
    assert [disk.base.node for disk in graph.disks.values()] == ["a0", "b0"]


def test_after_a_merge_the_node_further_below_is_the_one() -> None:
    merged = [node("n2", "/d/s2", below="/d/base", ro=False), *CHAIN[2:], node("x0", "/d/base")]
    assert parse_images(merged, OPENED).disks["vda"].base.node == "n0"


def test_a_node_that_is_missing_means_that_the_graph_has_moved() -> None:
    for nodes in (CHAIN[1:], CHAIN[:2], [node("n2", "/d/s2", below="/d/s2")]):
        with pytest.raises(GraphMoved):
            parse_images(nodes, OPENED)


def test_what_is_no_list_of_nodes_is_malformed() -> None:
    with pytest.raises(Malformed):
        parse_images([{"node-name": "n"}], OPENED)
