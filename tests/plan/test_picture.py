from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Chains, Graph, InternalSnapshot
from qmpsnap.model.picture.picture import Picture
from qmpsnap.plan.picture import picture_of_chains, picture_of_change
from qmpsnap.testing.drawing import chain, graph

BEFORE = graph(vda="base <- s1 <- s2 <- s3*")
TOP, S2, S1, BASE = BEFORE.disks["vda"].files


def change(after: Chains, before: Graph = BEFORE, then: Graph | None = None, **more: object) -> Picture:
    facts: dict[str, object] = {"invalid": (), "prepared": Frozen(), **more}
    return picture_of_change(before.chains(), after, graph_before=before, graph_after=then, **facts)  # type: ignore[arg-type]


def boxes(picture: Picture) -> list[list[tuple[str, tuple[str, ...], str]]]:
    return [
        [(box.title, box.lines, box.kind) for box in panel.boxes] for row in picture.rows for panel in row
    ]


def test_a_commit_shows_what_leaves_the_chain_and_what_it_writes_into() -> None:
    picture = change({"vda": (TOP, S1, BASE)}, invalid=(f"{S2}.invalid", S1))
    assert [[panel.title, panel.follows] for row in picture.rows for panel in row] == [
        ["vda before", False],
        ["vda after", True],
    ]
    assert boxes(picture) == [
        [
            ("s3.qcow2", ("active layer",), "active"),
            ("s2.qcow2", ("leaves the chain, invalid",), "gone"),
            ("s1.qcow2", (), "layer"),
            ("base.qcow2", (), "layer"),
        ],
        [
            ("s3.qcow2", ("active layer",), "active"),
            ("s1.qcow2", ("INVALID: a commit writes into it",), "bad"),
            ("base.qcow2", (), "layer"),
        ],
    ]
    assert picture.title == (
        "before: vda: 4 layers, the active one is s3.qcow2; after: vda: 3 layers, the active one is s3.qcow2"
    )


def test_a_snapshot_shows_the_new_active_layer() -> None:
    (_, after) = boxes(change({"vda": ("/images/new.qcow2", TOP, S2, S1, BASE)}))
    assert after[:2] == [("new.qcow2", ("new active layer",), "new"), ("s3.qcow2", (), "layer")]


def test_a_stream_shows_which_layers_leave_the_chain_and_stay_valid() -> None:
    (before, _) = boxes(change({"vda": (TOP, BASE)}))
    assert [lines for _, lines, _ in before] == [
        ("active layer",),
        ("leaves the chain",),
        ("leaves the chain",),
        (),
    ]


def test_snapshots_inside_the_images_are_shown_before_and_after() -> None:
    disk = chain("base*")
    with_one = graph(replace(disk, layers=(replace(disk.active, snapshots=(InternalSnapshot("1", "i1"),)),)))
    picture = change(with_one.chains(), graph(disk), with_one)
    assert [[lines for _, lines, _ in panel] for panel in boxes(picture)] == [
        [("active layer",)],
        [("active layer", "inside: i1")],
    ]


def test_an_overlay_for_another_qemu_is_beside_the_chain_that_stays() -> None:
    (before, after) = boxes(change(BEFORE.chains(), prepared=Frozen({"vda": "/images/new.qcow2"})))
    assert after == [("new.qcow2", ("new, for another QEMU to start from",), "new"), *before]


def test_a_disk_whose_chain_is_not_predicted_is_shown_as_it_is() -> None:
    assert [panel.title for row in change({}).rows for panel in row] == ["vda before"]


def test_a_result_shows_the_chains_side_by_side() -> None:
    picture = picture_of_chains({"vda": (TOP, BASE), "cd0": ()}, invalid=(BASE,))
    assert boxes(picture) == [
        [
            ("s3.qcow2", ("active layer",), "active"),
            ("base.qcow2", ("INVALID: a commit writes into it",), "bad"),
        ],
        [("(empty)", (), "more")],
    ]
