from __future__ import annotations

from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.header import Header
from qmpsnap.model.image_chain import ImageChain, ImageLayer
from qmpsnap.model.image_graph import ImageFact, image_graph
from qmpsnap.model.names import image_nodes, is_owned_node

TOP = ImageLayer("/d/s1", "qcow2", 8, 1, 2, Header("qcow2", 8, backing="base", backing_format="raw"))
BASE = ImageLayer("/d/base", "raw", 4, 1, 3)
INSIDE = (InternalSnapshot("1", "old"),)


def test_chain_has_what_headers_and_files_tell() -> None:
    facts = {"/d/s1": ImageFact(4096, INSIDE), "/d/base": ImageFact(512)}
    graph = image_graph((ImageChain("vda", (TOP, BASE)),), facts)
    disk = graph.disks["vda"]
    node, file_node, _ = image_nodes("vda", "/d/s1")
    assert (disk.name, disk.root, disk.files, disk.writable) == ("vda", node, ("/d/s1", "/d/base"), True)
    top, base = disk.layers
    assert (top.node, top.file_node, top.snapshots, top.read_only) == (node, file_node, INSIDE, False)
    assert (top.backing, top.backing_format, top.virtual_size, top.allocated) == ("base", "raw", 8, 4096)
    assert (base.format, base.backing, base.virtual_size, base.read_only) == ("raw", None, 4, True)
    assert {(one.file, one.backing) for one in graph.nodes.values()} == {
        ("/d/s1", "/d/base"),
        ("/d/base", ""),
    }


def test_nodes_of_one_base_differ_by_the_disk_and_are_ours_to_free() -> None:
    one, other = image_nodes("vda", "/d/base"), image_nodes("vdb", "/d/base")
    assert len({*one, *other}) == 6
    assert [is_owned_node(name) for name in one] == [True, False, False]
