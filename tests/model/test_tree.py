from __future__ import annotations

from math import log2

from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model.tree import Tree, TreeImage
from tests.each import each


def image(file: str, backing: str | None = None, *, active: bool = False, other: bool = False) -> TreeImage:
    return TreeImage(file, backing, owner="other" if other else "machine", active=active)


def drawn(*images: TreeImage, others: int = 3) -> list[str]:
    return [
        f"{line.stem} {line.image.file if line.image else line.hidden}"
        for line in Tree(images).drawn(others=others)
    ]


def test_tree_draws_a_chain_straight_down() -> None:
    assert drawn(image("base"), image("s1", "base"), image("s2", "s1", active=True)) == [
        "o base",
        "o s1",
        "* s2",
    ]


def test_tree_draws_the_way_to_the_active_layer_straight_and_branches_beside_it() -> None:
    images = (
        image("base"),
        image("a", "base"),
        image("a1", "a"),
        image("a2", "a"),
        image("a21", "a2"),
        image("b", "base"),
        image("now", "b", active=True),
    )
    assert drawn(*images) == [
        "o base",
        "|-o a",
        "| |-o a1",
        "| o a2",
        "| o a21",
        "o b",
        "* now",
    ]


def test_tree_draws_each_root() -> None:
    images = (image("base"), image("now", "base", active=True), image("data", "nbd://host/x", active=True))
    assert drawn(*images) == ["o base", "* now", "* data"]


def test_tree_counts_the_branches_of_other_machines_beyond_some() -> None:
    clones = [image(f"clone{number}", "base", other=True) for number in range(5)]
    above = image("clone4-s1", "clone4", other=True)
    images = (image("base"), *clones, above, image("now", "base", active=True))
    assert drawn(*images, others=2) == [
        "o base",
        "|-o clone0",
        "|-o clone1",
        "|- 4",
        "* now",
    ]


def test_tree_tells_what_is_backed_by_a_file_and_which_snapshots_are_read_from_it() -> None:
    tree = Tree(
        (
            TreeImage("base", holds=("one",)),
            TreeImage("s1", "base", holds=("two",)),
            TreeImage("s2", "s1", active=True),
            TreeImage("r1", "base", holds=("three",)),
            TreeImage("s1.invalid", "base", invalid=True),
        )
    )
    assert [one.file for one in tree.on("base")] == ["s1", "r1"]
    assert [one.file for one in tree.above("base")] == ["s1", "r1", "s2"]
    assert tree.moments_reading("base") == ("one", "three", "two")
    assert tree.moments_reading("s1") == ("two",)
    assert tree.moments_reading("s2") == ()
    assert tree.at("r1") == TreeImage("r1", "base", holds=("three",))
    assert tree.at("nope") is None


@given(st.lists(st.integers(0, 10**6), max_size=120), st.integers(0, 10**6))
def test_tree_draws_every_image_once_and_stays_narrow(parents: list[int], active: int) -> None:
    below = [None, *(f"i{parent % (index + 1)}" for index, parent in enumerate(parents))]
    images = tuple(
        image(f"i{index}", backing, active=index == active % len(below))
        for index, backing in enumerate(below)
    )
    lines = Tree(images).drawn()
    assert sorted(line.image.file for line in lines if line.image) == sorted(one.file for one in images)
    assert max(len(line.stem) for line in lines) <= 1 + 2 * (log2(len(images)) + 1)


def test_a_picture_of_a_tree_has_the_base_at_the_bottom_and_branches_in_lanes_of_their_own() -> None:
    tree = Tree(
        (
            TreeImage("/d/base", disks=("vda",), owner="machine", holds=("one",)),
            TreeImage("/d/a", "/d/base"),
            *(TreeImage(f"/d/o{number}", "/d/base", owner="other") for number in range(5)),
            TreeImage("/d/b", "/d/base", owner="machine"),
            TreeImage("/d/b1", "/d/b", owner="machine", missing=True),
            TreeImage("/d/now", "/d/base", ("vda",), "machine", "qcow2", 1 << 30, 1 << 20, active=True),
            TreeImage("nbd://h/x", None, ("vdb",), "machine", active=True),
        )
    )
    ((vda, vdb),) = tree.picture().rows
    assert [(box.title, box.lane, box.kind) for box in vda.boxes] == [
        ("now", 0, "active"),
        ("2 more of other machines, or left", 1, "more"),
        ("b1", 1, "bad"),
        ("b", 1, "layer"),
        ("o2", 1, "gone"),
        ("o1", 1, "gone"),
        ("o0", 1, "gone"),
        ("a", 1, "gone"),
        ("base", 0, "layer"),
    ]
    assert {(edge.upper, edge.lower) for edge in vda.edges} == {
        ("/d/now", "/d/base"), ("more /d/base", "/d/base"), ("/d/b1", "/d/b"), ("/d/b", "/d/base"),
        ("/d/o2", "/d/base"), ("/d/o1", "/d/base"), ("/d/o0", "/d/base"), ("/d/a", "/d/base"),
    }  # fmt: skip
    assert vda.boxes[0].lines == ("active layer of vda", "qcow2, 1 GiB, 1 MiB allocated")
    assert vda.boxes[-1].lines == ("holds: one",)
    assert (vda.title, vdb.title, [box.title for box in vdb.boxes]) == ("vda", "vdb", ["x"])


@each(
    ("image", "marks"),
    [
        (TreeImage("a", owner="machine"), ()),
        (TreeImage("a"), ("in no record",)),
        (TreeImage("a", invalid=True), ("INVALID",)),
        (TreeImage("a", owner="other", missing=True), ("MISSING", "another machine's, or left")),
        (TreeImage("a", owner="other", holds_other=("x", "y")), ("another machine's, or left: x, y",)),
        (
            TreeImage("a", owner="machine", inside=("i1", "i2"), holds_deleted=("z",)),
            ("inside: i1, i2", "deleted: z"),
        ),
    ],
)
def test_an_image_of_a_tree_is_marked(image: TreeImage, marks: tuple[str, ...]) -> None:
    assert image.marks == marks


def test_a_notebook_shows_a_tree() -> None:
    tree = Tree((TreeImage("base", active=True),))
    assert tree._repr_svg_() == tree.picture().render("svg")
