"""What must be the same before each test."""

from __future__ import annotations

from qmpsnap.model.graph import Disk, Filter, Node
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.shared.standing import Standing, differences, names_of, pictures
from tests.each import each


def standing(drawing="base <- ready <- now*", *, nodes=(), **parts):
    return Standing.of(graph(nodes=nodes, vda=drawing), {"devices": ("vda",), "jobs": ()} | parts)


LONE = (Node("lone", "raw", "/x"),)

ROWS = {
    "the active layer is another one": (standing("base <- ready <- other*"), []),
    "a node that QEMU has named": (standing(nodes=(Node("#block7", "file", "/x"),)), []),
    "a layer more": (standing("base <- ready <- s1 <- now*"), ["the chain of vda (new: /images/s1.qcow2)"]),
    "a layer less": (standing("base <- now*"), ["the chain of vda (gone: /images/ready.qcow2)"]),
    "a node that is left": (standing(nodes=LONE), ["block nodes (new: lone)"]),
    "a device is gone": (standing(devices=()), ["devices (gone: vda)"]),
    "a job and another device": (
        standing(devices=("vda", "vdb"), jobs=("j1",)),
        ["devices (new: vdb)", "jobs (new: j1)"],
    ),
}


@each("name", ROWS)
def test_differences_name_what_came_and_went(name):
    after, expected = ROWS[name]
    assert [str(difference) for difference in differences(standing(), after)] == expected


def test_differences_see_a_disk_that_was_unplugged():
    after = Standing.of(graph(), {"devices": (), "jobs": ()})
    assert [str(one) for one in differences(standing(), after)] == [
        "disks (gone: vda)",
        "devices (gone: vda)",
    ]


@each(
    ("medium", "expected"),
    [
        (chain("other*").layers, "the chain of cd (new: /images/other.qcow2; gone: /images/first.qcow2)"),
        ((), "the chain of cd (gone: /images/first.qcow2)"),
    ],
)
def test_differences_see_that_a_drive_has_another_medium_or_none(medium, expected):
    before = Standing.of(graph(Disk("cd", layers=chain("first*").layers, read_only=True)), {})
    after = Standing.of(graph(Disk("cd", layers=medium, read_only=True)), {})
    assert [str(one) for one in differences(before, after)] == [expected]


def test_filters_of_a_disk_are_part_of_it():
    disk = Disk("vdc", root="thr", filters=(Filter("thr", "throttle"),), layers=chain("c*").layers)
    assert Standing.of(graph(disk), {}).nodes == ()


def test_pictures_show_each_chain_in_a_line():
    assert pictures(graph(vda="base <- s1*", vdb="b*")) == "vda: [base] <- [s1*]\nvdb: [b*]\n"


@each(
    ("answer", "expected"),
    [([{"id": "b"}, {"id": "a"}], ("a", "b")), ([], ()), (None, ()), ({}, ()), ([{}], ("",))],
)
def test_names_of_an_answer_are_sorted(answer, expected):
    assert names_of("id", answer) == expected
