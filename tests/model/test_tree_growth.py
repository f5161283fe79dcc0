from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.files import Ask, FileFact
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, InternalSnapshot
from qmpsnap.model.moments import find_moments
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.tree_growth import Growth, ask_around, with_sizes
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.plan.scenes import STATE, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.record import Record
    from qmpsnap.model.tree import Tree

NOON = "2024-05-01T12:00:00+00:00"


def path(name: str) -> str:
    return f"/images/{name}.qcow2" if "." not in name else f"/images/{name}"


def moment(name: str, held: str, *began: str, disk: str = "vda", **more: object) -> MomentRecord:
    overlay, *branches = (path(one) for one in began)
    record = MomentRecord(
        id=f"qmpsnap-snapshot-keep-{name}",
        name=name,
        created=NOON,
        overlays={disk: overlay},
        covered={disk: path(held)},
        branches=tuple({disk: one} for one in branches),
        directory=STATE,
    )
    return replace(record, **more)


def put(files: FakeFiles, *edges: str) -> None:
    """Put images, each drawn as "base <- overlay"."""
    for edge in edges:
        below, file = edge.split(" <- ")
        files.put(path(file), backing=path(below))


def tree(on: Graph, files: FakeFiles, *records: Record) -> Tree:
    """What a machine's tree is, asked as `VM.moments` asks."""
    files.records = list(records)
    first = files.look(ask_around(on) | Ask(records=(STATE,)))
    more = files.look(Growth(on, first.records, first).ask() | Ask(records=(STATE,)))
    seen = replace(
        first, files=Frozen({**first.files, **more.files}), images=Frozen({**first.images, **more.images})
    )
    moments = find_moments(on, more.records, memories=more.memories)
    return Growth(on, more.records, seen).tree(moments.moments)


def drawn(found: Tree) -> list[str]:
    """Each line with what the image holds and what is special about it."""
    lines = []
    for line in found.drawn():
        image = line.image
        assert image is not None
        marks = [
            mark
            for mark, there in (
                ("MISSING", image.missing),
                ("INVALID", image.invalid),
                (image.owner, image.owner != "machine"),
            )
            if there
        ]
        name = image.file.removeprefix("/images/").removesuffix(".qcow2")
        lines.append(" ".join([line.stem, name, *map(str, image.holds), *marks]))
    return lines


def test_tree_has_the_branches_that_a_revert_left() -> None:
    on = graph(vda="base <- r1 <- r2*")
    files = FakeFiles(on)
    put(files, "base <- s1", "s1 <- s2")
    records = (moment("one", "base", "s1", "r1"), moment("two", "s1", "s2"), moment("three", "r1", "r2"))
    assert drawn(tree(on, files, *records)) == [
        "o base one",
        "|-o s1 two",
        "| o s2",
        "o r1 three",
        "* r2",
    ]


def test_tree_says_what_each_image_is() -> None:
    on = graph(vda="base <- s1*")
    found = tree(on, FakeFiles(on), moment("one", "base", "s1"))
    base, top = found.images
    assert (base.file, base.backing, base.disks, base.format) == (path("base"), None, ("vda",), "qcow2")
    assert (base.virtual_size, base.allocated, base.active, base.in_chain) == (64 << 20, 196_616, False, True)
    assert (base.holds, base.began, top.holds, top.began) == (("one",), (), (), ("one",))
    assert (top.backing, top.active, top.in_chain, top.owner) == (path("base"), True, True, "machine")


def test_tree_is_complete_without_any_record() -> None:
    on = graph(vda="base <- r1*")
    files = FakeFiles(on)
    put(files, "base <- s1", "s1 <- s2")
    assert drawn(tree(on, files)) == ["o base", "|-o s1 unknown", "| o s2 unknown", "* r1"]


def test_tree_tells_images_of_other_machines_from_those_that_no_record_names() -> None:
    on = graph(vda="base <- s1*")
    files = FakeFiles(on)
    put(files, "base <- golden", "golden <- t1", "t1 <- t2", "t2 <- t3", "base <- plain", "s1 <- foreign")
    theirs = moment("theirs", "t1", "t2", chains={"vda": (path("t1"), path("golden"), path("base"))})
    assert drawn(tree(on, files, moment("one", "base", "s1"), theirs)) == [
        "o base one",
        "|-o plain unknown",
        "|-o golden other",
        "| o t1 other",
        "| o t2 other",
        "| o t3 other",
        "* s1",
        "o foreign unknown",
    ]


def test_tree_gives_what_backs_another_machines_image_to_that() -> None:
    on = graph(vda="base <- s1*")
    files = FakeFiles(on)
    put(files, "base <- golden", "golden <- t1", "t1 <- t2")
    assert drawn(tree(on, files, moment("theirs", "t1", "t2")))[1:4] == [
        "|-o golden other",
        "| o t1 other",
        "| o t2 other",
    ]


def test_tree_has_what_a_commit_wrote_into_and_what_it_left() -> None:
    on = graph(vda="base <- s1 <- s2*")
    files = FakeFiles(on)
    put(files, "s1 <- old.qcow2.invalid")
    began = IntentRecord(
        "qmpsnap-commit-keep-0", "commit", NOON, chains={}, invalid=(path("s1"),), directory=STATE
    )
    assert drawn(tree(on, files, began, moment("two", "s1", "s2"))) == [
        "o base",
        "o s1 two INVALID",
        "|-o old.qcow2.invalid INVALID unknown",
        "* s2",
    ]


def test_tree_names_no_snapshot_in_an_image_into_which_a_commit_has_written_since() -> None:
    on = graph(vda="base <- s1 <- s3*", vdb="data <- d2*")
    two = moment("two", "s1", "s2", overlays={"vda": path("s2"), "vdb": path("d2")}, lost=("vda",))
    two = replace(two, covered={"vda": path("s1"), "vdb": path("data")})
    assert drawn(tree(on, FakeFiles(on), two, moment("three", "s1", "s3"))) == [
        "o base",
        "o s1 three",
        "* s3",
        "o data two",
        "* d2",
    ]


def test_tree_names_a_snapshot_whose_layer_is_missing_and_no_overlay_that_is() -> None:
    on = graph(vda="base <- r1*")
    records = (moment("one", "base", "s1", "r1"), moment("two", "s1", "s2"))
    assert drawn(tree(on, FakeFiles(on), *records)) == ["o base one", "* r1", "o s1 two MISSING"]


def test_tree_says_that_a_backing_file_is_missing() -> None:
    on = graph(vda="base <- r1*")
    files = FakeFiles(on)
    put(files, "gone <- s1")
    assert drawn(tree(on, files, moment("one", "base", "s1", "r1"))) == [
        "o base one",
        "* r1",
        "o gone MISSING",
        "o s1",
    ]


def test_tree_keeps_a_deleted_snapshot_apart_from_those_that_are_listed() -> None:
    on = graph(vda="base <- r1*")
    files = FakeFiles(on)
    put(files, "base <- s1", "s1 <- s2")
    gone = moment("one", "base", "s1", "r1", deleted=True)
    found = tree(on, files, gone, moment("two", "s1", "s2"))
    assert [(image.holds, image.holds_deleted, image.began) for image in found.images] == [
        ((), ("one",), ()),
        ((), (), ()),
        (("two",), (), ()),
        ((), (), ("two",)),
    ]
    assert [image.owner for image in found.images] == ["machine"] * 4


def test_tree_has_the_snapshots_inside_layers() -> None:
    disk = with_layer(chain("base <- s1*"), 0, snapshots=(InternalSnapshot("1", "in"),))
    on = graph(disk)
    assert [image.inside for image in tree(on, FakeFiles(on)).images] == [(), ("in",)]


def test_tree_of_an_empty_drive_is_none() -> None:
    on = graph(Disk("cd0"), vda="base <- s1*")
    assert drawn(tree(on, FakeFiles(on))) == ["o base", "* s1"]


def test_tree_of_two_disks_on_one_base_is_one() -> None:
    on = graph(vda="base <- a*", vdb="base <- b*")
    found = tree(on, FakeFiles(on))
    assert drawn(found) == ["o base", "|-* a", "* b"]
    assert [image.disks for image in found.images] == [("vda", "vdb"), ("vda",), ("vdb",)]


def test_tree_of_layers_that_are_no_files_is_that_of_the_graph() -> None:
    disk = with_layer(chain("base <- s1*"), 1, file="nbd://host/x", local=False, format="raw")
    on = graph(disk)
    found = tree(on, FakeFiles(on))
    assert [(image.file, image.backing) for image in found.images] == [
        ("nbd://host/x", None),
        (path("s1"), "nbd://host/x"),
    ]


def test_tree_of_files_that_are_not_visible_is_that_of_the_graph() -> None:
    on = graph(vda="base <- s1*")
    assert drawn(tree(on, FakeFiles(on, shared=False))) == ["o base", "* s1"]


def test_tree_shows_images_whose_backing_files_are_a_loop() -> None:
    on = graph(vda="base <- s1*")
    files = FakeFiles(on)
    put(files, "b <- a", "a <- b", "a <- l")
    found = tree(on, files, moment("one", "base", "l", "s1"))
    assert sorted(image.file for image in found.images) == [
        path(name) for name in ("a", "b", "base", "l", "s1")
    ]
    assert len(found.drawn()) == 5


def test_tree_names_a_file_as_the_graph_spells_it() -> None:
    on = graph(vda="base <- s1*")
    files = FakeFiles(on)
    canonical = "/real/base.qcow2"
    files.facts[path("base")] = replace(files.facts[path("base")], real=canonical)
    files.facts[path("s1")] = replace(files.facts[path("s1")], backing=canonical)
    files.facts[path("s2")] = FileFact(
        "regular", header=files.facts[path("s1")].header, real=path("s2"), backing=canonical
    )
    assert drawn(tree(on, files)) == ["o base", "|-o s2 unknown", "* s1"]


def test_tree_asks_for_the_layers_and_records_that_it_has_not_seen() -> None:
    on = graph(vda="base <- r1*")
    files = FakeFiles(on)
    put(files, "base <- clone")
    files.put("/else/s1.qcow2", backing=path("base"))
    files.records = [replace(moment("one", "base", "s1", "r1"), overlays={"vda": "/else/s1.qcow2"})]
    first = files.look(ask_around(on) | Ask(records=(STATE,)))
    assert Growth(on, first.records, first).ask() == Ask(
        files=("/else/s1.qcow2", path("clone")), survey=("/else",), records=(STATE, "/images/clone.qmpsnap")
    )


def test_moments_know_the_sizes_of_overlays_that_the_chains_have_left() -> None:
    on = graph(vda="base <- r1*")
    files = FakeFiles(on)
    put(files, "base <- s1", "s1 <- s2")
    files.facts[path("s2")] = replace(files.facts[path("s2")], allocated=4096)
    records = (moment("one", "base", "s1", "r1"), moment("two", "s1", "s2"), moment("gone", "s1", "s3"))
    moments = find_moments(on, records).moments
    assert [one.allocated for one in moments] == [None, 196_616, None]
    sized = with_sizes(moments, tree(on, files, *records))
    assert [(one.name, one.allocated) for one in sized] == [("gone", None), ("one", 196_616), ("two", 4096)]
