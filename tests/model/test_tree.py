from __future__ import annotations

from math import log2

from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model.tree import Tree, TreeImage


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
