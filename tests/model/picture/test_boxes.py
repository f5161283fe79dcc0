from __future__ import annotations

from qmpsnap.model.picture.boxes import Box, Edge, Panel, base_name, named, stacked
from qmpsnap.testing.drawing import chain
from tests.each import each


def row(*names: str) -> Panel:
    boxes = tuple(Box(name, name) for name in names)
    return Panel("vda", boxes, stacked(boxes))


def titles(panel: Panel) -> list[str]:
    return [box.title for box in panel.boxes]


@each("count", [1, 2, 15, 16])
def test_a_row_that_fits_is_drawn_whole(count: int) -> None:
    panel = row(*(f"s{number}" for number in range(count)))
    assert panel.shortened() == panel


def test_a_long_row_keeps_both_ends_and_says_how_many_layers_it_does_not_show() -> None:
    disk = chain(" <- ".join(f"s{number}" for number in range(200)) + "*")
    shown = disk.panel().shortened()
    assert titles(shown) == [
        *(f"s{number}.qcow2" for number in range(199, 192, -1)),
        "187 layers not shown",
        *(f"s{number}.qcow2" for number in range(5, -1, -1)),
    ]
    assert [(edge.upper, edge.lower) for edge in shown.edges] == [
        (upper.key, lower.key) for upper, lower in zip(shown.boxes, shown.boxes[1:], strict=False)
    ]


def test_a_layer_with_a_branch_or_a_mark_is_never_left_out() -> None:
    boxes = [Box(f"s{number}", f"s{number}") for number in range(40)]
    boxes[20] = Box("s20", "s20", kind="bad")
    branch = Box("branch", "branch", lane=1)
    panel = Panel("vda", (*boxes[:30], branch, *boxes[30:]), (*stacked(boxes), Edge("branch", "s30")))
    assert titles(panel.shortened()) == [
        *(f"s{number}" for number in range(6)), "8 layers not shown",
        *(f"s{number}" for number in range(14, 30)), "branch", *(f"s{number}" for number in range(30, 40)),
    ]  # fmt: skip


def test_a_layer_into_which_a_job_writes_is_always_shown() -> None:
    panel = row(*(f"s{number}" for number in range(60)))
    shown = Panel("vda", panel.boxes, (*panel.edges, Edge("job", "s30")), (Box("job", "commit"),)).shortened()
    assert Edge("job", "s30") in shown.edges
    assert [title for title in titles(shown) if "not" in title] == ["18 layers not shown"] * 2
    assert {key for edge in shown.edges for key in (edge.upper, edge.lower)} == {
        "job",
        *(box.key for box in shown.boxes),
    }


@each(
    ("names", "line"),
    [
        ([], ()),
        (["a"], ("inside: a",)),
        (list("abcdef"), ("inside: a, b, c, d, e, f",)),
        (list("abcdefgh"), ("inside: a, b, c, d, e, f and 2 more",)),
    ],
)
def test_a_line_lists_the_first_names(names: list[str], line: tuple[str, ...]) -> None:
    assert named("inside", names) == line


@each(
    ("file", "name"), [("/d/a.qcow2", "a.qcow2"), ("nbd://host/x", "x"), ("a", "a"), ("/d/", "/d/"), ("", "")]
)
def test_a_file_is_shown_by_the_last_part_of_its_path(file: str, name: str) -> None:
    assert base_name(file) == name
