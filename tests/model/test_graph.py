from __future__ import annotations

import pytest

from qmpsnap.model.graph import FILTER_DRIVERS, Disk, Graph, Node, draw
from qmpsnap.testing.drawing import chain, graph
from tests.each import each


def test_disk_names_its_active_layer_its_base_and_its_files() -> None:
    disk = chain("base <- s1 <- s2*")
    assert (disk.active.node, disk.base.node) == ("vda-s2", "vda-base")
    assert disk.files == ("/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2")


def test_chains_lists_every_disk_active_first() -> None:
    both = graph(vda="base <- s1*", vdb="data*")
    assert both.chains() == {
        "vda": ("/images/s1.qcow2", "/images/base.qcow2"),
        "vdb": ("/images/data.qcow2",),
    }


def test_chains_lists_the_named_disks_and_leaves_out_the_unknown() -> None:
    both = graph(vda="base*", vdb="data*")
    assert both.chains("vdb", "gone") == {"vdb": ("/images/data.qcow2",)}


def test_chains_of_an_empty_drive_are_empty() -> None:
    assert Graph({"cd0": Disk("cd0")}).chains() == {"cd0": ()}


@each(
    ("files", "picture"),
    [
        ((), "(empty)"),
        (("/d/base.qcow2",), "[base*]"),
        (("/d/sn1.qcow2", "/d/base.img"), "[base] <- [sn1*]"),
        (("/d/x.y", "/d/b.raw", "nbd://host/export"), "[export] <- [b] <- [x.y*]"),
        (("/d/.qcow2", "plain"), "[plain] <- [.qcow2*]"),
    ],
)
def test_draw_shows_the_base_first_and_marks_the_active_layer(files: tuple[str, ...], picture: str) -> None:
    assert draw(files) == picture


@each("driver", sorted(FILTER_DRIVERS))
def test_node_is_a_filter_when_its_driver_passes_data_through(driver: str) -> None:
    assert Node("n", driver, "/f").is_filter


@each("driver", ["qcow2", "raw", "file", "quorum", "nbd"])
def test_node_is_no_filter_when_it_is_an_image(driver: str) -> None:
    assert not Node("n", driver, "/f").is_filter


def test_graph_cannot_be_changed() -> None:
    one = graph(vda="base*")
    with pytest.raises(AttributeError):
        one.disks = {}  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.disks["vda"] = Disk("vda")  # type: ignore[index]
