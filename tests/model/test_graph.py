from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.graph import (
    FILTER_DRIVERS,
    Bitmap,
    Disk,
    Filter,
    Graph,
    InternalSnapshot,
    Layer,
    Node,
    draw,
    summary,
)
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


def test_a_picture_of_a_disk_has_its_filters_where_they_are() -> None:
    filters = (Filter("thr", "throttle"), Filter("cor", "copy-on-read", under="vda-s1"))
    disk = replace(chain("base <- s1 <- s2*"), filters=filters)
    panel = disk.panel()
    assert [(box.title, box.kind) for box in panel.boxes] == [
        ("thr", "filter"),
        ("s2.qcow2", "active"),
        ("s1.qcow2", "layer"),
        ("cor", "filter"),
        ("base.qcow2", "layer"),
    ]
    assert [edge.upper for edge in panel.edges] == [box.key for box in panel.boxes][:-1]


@each(
    ("more", "expected"),
    [
        ({}, ("raw, 1 KiB, ? allocated", "node n")),
        ({"node": "", "allocated": 512}, ("raw, 1 KiB, 512 B allocated",)),
        (
            {"snapshots": (InternalSnapshot("1", "i1"),), "bitmaps": (Bitmap("b"), Bitmap(""))},
            ("raw, 1 KiB, ? allocated", "node n", "inside: i1", "bitmaps: b"),
        ),
    ],
)
def test_a_box_of_a_layer_tells_what_is_known_of_it(
    more: dict[str, object], expected: tuple[str, ...]
) -> None:
    layer = replace(Layer("n", "/d/a.raw", "raw", 1024), **more)
    box = layer.box(active="", invalid=False)
    assert (box.title, box.full, box.lines) == ("a.raw", "/d/a.raw", expected)


def test_a_picture_marks_the_active_layer_and_layers_that_hold_no_moment() -> None:
    (row,) = graph(chain("base <- s1*"), Disk("cd0")).picture(invalid=["/images/base.qcow2"]).rows
    assert [(box.lines[:1], box.lines[-1], box.kind) for box in row[0].boxes] == [
        (("active layer",), "node vda-s1", "active"),
        (("qcow2, 64 MiB, 192 KiB allocated",), "INVALID: a commit wrote into it", "bad"),
    ]
    assert [(box.title, box.kind) for box in row[1].boxes] == [("(empty)", "more")]


def test_a_picture_says_of_a_read_only_disk_that_it_is() -> None:
    assert replace(chain("base*"), read_only=True).panel().boxes[0].lines[0] == "read-only disk"


@each(
    ("chains", "said"),
    [
        ({}, "no disks"),
        ({"cd0": ()}, "cd0: empty"),
        ({"vda": ("/d/a.raw",)}, "vda: one layer, a.raw"),
        (
            {"vda": ("/d/b", "/d/a"), "vdb": ("/d/c",)},
            "vda: 2 layers, the active one is b; vdb: one layer, c",
        ),
    ],
)
def test_summary_says_what_a_picture_shows(chains: dict[str, tuple[str, ...]], said: str) -> None:
    assert summary(chains) == said


def test_a_notebook_shows_a_graph() -> None:
    one = graph(vda="base <- s1*")
    assert one._repr_svg_() == one.picture().render("svg")
