from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Filter, InternalSnapshot, Io, Layer, Node
from qmpsnap.model.step import (
    AddNode,
    DropLayers,
    DropNode,
    Effect,
    Inside,
    Later,
    MoveRoot,
    Overlay,
    PutOverlays,
    Root,
)
from qmpsnap.plan.commands.block import blockdev_add, blockdev_del, set_drive, snapshot_sync
from qmpsnap.plan.commands.state import stop
from qmpsnap.plan.effect import after_effect, apply, apply_all
from qmpsnap.testing.drawing import MIB, chain, graph
from tests.each import each
from tests.plan.scenes import with_layer

ALL = graph(vda="base <- s1 <- s2*", vdb="data.raw*")
S2, S1, BASE = "/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"


def test_overlays_are_put_on_each_of_their_disks() -> None:
    effect = PutOverlays(
        (
            Overlay("vda", "vda-s2", "n1", "/o/a", S2, "us"),
            Overlay("vdb", "vdb-data.raw", "n2", "/o/b", "/images/data.raw", "qemu"),
        )
    )
    after = after_effect(ALL, effect)
    assert after.chains() == {"vda": ("/o/a", S2, S1, BASE), "vdb": ("/o/b", "/images/data.raw")}
    assert after.disks["vdb"].layers == (
        Layer("n2", "/o/b", "qcow2", 64 * MIB, backing="/images/data.raw", backing_format="raw"),
        Layer("vdb-data.raw", "/images/data.raw", "raw", 64 * MIB, 196_616, read_only=True),
    )
    assert (after.disks["vda"].root, after.nodes["n2"]) == ("n1", Node("n2", "qcow2", "/o/b"))


@each(
    ("effect", "files", "backing"),
    [
        (DropLayers("vda", S2, None), (S2,), None),
        (DropLayers("vda", S2, BASE), (S2, BASE), BASE),
        (DropLayers("vda", S2, BASE, "base.qcow2"), (S2, BASE), "base.qcow2"),
        (DropLayers("vda", S1, None), (S2, S1), S1),
    ],
)
def test_layers_that_are_dropped_leave_another_backing_file_to_the_one_above(
    effect: DropLayers, files: tuple[str, ...], backing: str | None
) -> None:
    disk = after_effect(ALL, effect).disks["vda"]
    assert (disk.files, disk.active.backing) == (files, backing)
    assert disk.active.backing_format == ("qcow2" if backing else None)


def test_a_root_that_moves_later_changes_nothing_yet() -> None:
    pivot = MoveRoot(Root.of(ALL.disks["vda"], 2))
    assert after_effect(ALL, Later(pivot)) == ALL
    disk = after_effect(ALL, pivot).disks["vda"]
    assert (disk.files, disk.root, disk.active.read_only) == ((BASE,), "vda-base", False)


def test_layer_that_becomes_the_active_one_has_at_least_the_size_of_that_which_it_replaces() -> None:
    pivot = MoveRoot(Root.of(ALL.disks["vda"], 2))
    for size, then in ((96 * MIB, 96 * MIB), (32 * MIB, 64 * MIB)):
        before = graph(with_layer(ALL.disks["vda"], 0, virtual_size=size))
        assert after_effect(before, pivot).disks["vda"].active.virtual_size == then


def test_a_root_may_move_to_a_copy() -> None:
    disk = after_effect(ALL, MoveRoot(Root("vda", "copy", "/c", "raw", None, ()))).disks["vda"]
    assert disk.layers == (Layer("copy", "/c", "raw", 64 * MIB),)
    assert disk.root == "copy"


def test_a_root_that_moves_above_the_old_one_leaves_that_as_it_is() -> None:
    copy = Root("vda", "copy", "/c", "qcow2", S2, ((S2, "qcow2"), (S1, "qcow2"), (BASE, "qcow2")))
    layers = after_effect(ALL, MoveRoot(copy)).disks["vda"].layers
    assert layers[0] == Layer("copy", "/c", "qcow2", 64 * MIB, backing=S2, backing_format="qcow2")
    assert layers[1:] == ALL.disks["vda"].layers


def test_a_node_that_is_dropped_is_gone() -> None:
    assert "vda-s1" not in after_effect(ALL, DropNode("vda-s1")).nodes


@each("effect", [DropLayers("vda", S2, None), MoveRoot(Root.of(ALL.disks["vda"], 2)), Inside(("vda",), "i1")])
def test_no_effect_touches_another_disk(effect: Effect) -> None:
    assert after_effect(ALL, effect).disks["vdb"] is ALL.disks["vdb"]


def test_apply_all_is_one_after_the_other() -> None:
    steps = [blockdev_add("n", "/o"), stop(), blockdev_add("m", "/p"), blockdev_del("n")]
    assert apply_all(ALL, steps).nodes == {**ALL.nodes, "m": Node("m", "qcow2", "/p")}
    assert apply_all(ALL, []) is ALL


def test_a_step_without_an_effect_leaves_the_graph_as_it_is() -> None:
    assert apply(ALL, stop()) is ALL


def test_snapshots_inside_active_layers_come_and_go() -> None:
    graph_ = graph(vda="base <- s1*", vdb="data*")
    taken = after_effect(graph_, Inside(("vda", "vdb"), "i1"))
    inside = {name: disk.active.snapshots for name, disk in taken.disks.items()}
    assert inside == {"vda": (InternalSnapshot("", "i1"),), "vdb": (InternalSnapshot("", "i1"),)}
    assert taken.disks["vda"].layers[1] == graph_.disks["vda"].layers[1]
    assert taken.nodes == graph_.nodes
    gone = after_effect(taken, Inside(("vda",), "i1", gone=True))
    assert gone.disks["vda"] == graph_.disks["vda"]
    assert gone.disks["vdb"] is taken.disks["vdb"]


def test_of_two_snapshots_with_one_name_that_with_the_id_goes() -> None:
    two = (InternalSnapshot("1", "i1"), InternalSnapshot("2", "i1"))
    taken = graph(with_layer(chain("base*"), 0, snapshots=two))
    after = after_effect(taken, Inside(("vda",), "i1", "2", gone=True))
    assert after.disks["vda"].active.snapshots == two[:1]
    assert after_effect(taken, Inside(("vda",), "i1", "9", gone=True)) == taken
    assert after_effect(taken, Inside(("vda",), "i1", gone=True)).disks["vda"].active.snapshots == ()


NEW = Root("vda", "new", "/new", "qcow2", S1, ((S1, "qcow2"), (BASE, "qcow2")))


@each("closes", [True, False])
def test_a_new_root_is_read_on_the_layers_that_are_known_already(*, closes: bool) -> None:
    after = after_effect(ALL, MoveRoot(NEW, alone=True, closes=closes))
    disk = after.disks["vda"]
    assert (disk.files, disk.root) == (("/new", S1, BASE), "new")
    assert [layer.node for layer in disk.layers] == ["new", "vda-s1", "vda-base"]
    assert [layer.read_only for layer in disk.layers] == [False, True, True]
    assert disk.active == Layer("new", "/new", "qcow2", 64 * MIB, backing=S1, backing_format="qcow2")
    assert ("vda-s2" in after.nodes) is not closes
    assert after.disks["vdb"] is ALL.disks["vdb"]


def test_another_device_on_the_same_node_goes_along_unless_one_moves_alone() -> None:
    twin = replace(ALL.disks["vda"], name="vdc")
    twins = graph(ALL.disks["vda"], twin)
    assert after_effect(twins, MoveRoot(NEW)).disks["vdc"].files == ("/new", S1, BASE)
    assert after_effect(twins, MoveRoot(NEW, alone=True)).disks["vdc"] is twin


def test_what_is_done_with_the_file_comes_along_to_an_overlay_and_to_a_new_root() -> None:
    io = Io(direct=True, detect_zeroes="on")
    of = graph(with_layer(chain("base <- s1*"), 0, io=io))
    covered = apply(of, snapshot_sync((Overlay("vda", "vda-s1", "n", "/o", S1, "us"),)))
    assert covered.disks["vda"].active.io == Io(direct=True)
    assert after_effect(ALL, MoveRoot(replace(NEW, io=io))).disks["vda"].active.io == io


def test_a_new_root_under_a_filter_leaves_the_filter_the_root() -> None:
    disk = replace(ALL.disks["vda"], root="thr", filters=(Filter("thr", "throttle", "tg"),))
    after = after_effect(graph(disk), MoveRoot(NEW))
    assert (after.disks["vda"].root, after.disks["vda"].files[0]) == ("thr", "/new")


def test_layers_that_were_left_aside_get_nodes_that_are_not_predicted() -> None:
    aside = replace(NEW, backing="/aside", chain=(("/aside", "qcow2"), (BASE, "qcow2")))
    after = after_effect(ALL, MoveRoot(aside))
    assert [layer.node for layer in after.disks["vda"].layers] == ["new", "", "vda-base"]
    assert after.disks["vda"].layers[1].backing == BASE
    assert "" not in after.nodes


def test_the_old_root_comes_back_as_it_was() -> None:
    move = set_drive(NEW, "/q", Root.of(ALL.disks["vda"]), closes=False)
    back = apply_all(ALL, (move, *move.undo))
    assert back.chains() == ALL.chains()
    assert back.disks["vda"].root == "vda-s2"


def test_an_image_that_is_opened_belongs_to_no_disk() -> None:
    after = after_effect(ALL, AddNode("n", "qcow2", "/o"))
    assert (after.disks, after.nodes["n"]) == (ALL.disks, Node("n", "qcow2", "/o"))
    assert after_effect(after, DropNode("n")) == ALL


def test_an_overlay_moves_every_device_on_the_same_root() -> None:
    twin = replace(chain("base <- s1*"), name="twin")
    after = after_effect(
        graph(chain("base <- s1*"), twin), PutOverlays((Overlay("vda", "vda-s1", "n1", "/o/a", S1, "us"),))
    )
    assert after.chains() == {"vda": ("/o/a", S1, BASE), "twin": ("/o/a", S1, BASE)}
    assert {disk.root for disk in after.disks.values()} == {"n1"}
