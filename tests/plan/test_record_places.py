from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk
from qmpsnap.plan.intent import Commit, Delete
from qmpsnap.plan.record_places import (
    refuse_unrecorded,
    state_directories,
    state_place,
    state_questions,
    with_parents,
)
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.moments import BASE, MOMENT, O1, TWO, files_of
from tests.plan.scenes import STATE, planned, scene, with_layer

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

ONE = graph(vda="base <- s1*")


def spread(disk: Disk, **places: str) -> Disk:
    """The disk with the layers of these names in these directories."""
    for index, layer in enumerate(disk.layers):
        name = layer.node.removeprefix(f"{disk.name}-")
        if name in places:
            disk = with_layer(disk, index, file=f"{places[name]}/{name}.qcow2")
    return disk


def test_records_may_lie_beside_the_base_or_the_next_layer_up() -> None:
    disk = spread(chain("base <- s1 <- s2*"), base="/slow", s1="/fast", s2="/fast")
    assert state_directories(disk, "") == (
        "/slow/base.qmpsnap",
        "/fast/base.qmpsnap",
        "/fast/s1.qmpsnap",
        "/fast/s2.qmpsnap",
    )
    assert state_directories(disk, "/mine") == ("/mine",)


@each("file", ["/dev/vg/base", "nbd://host/x", "base.qcow2"])
def test_records_lie_beside_no_layer_that_is_no_file(file: str) -> None:
    disk = with_layer(chain("base <- s1*"), 1, file=file, local=not file.startswith("nbd"))
    assert {place.rpartition("/")[0] for place in state_directories(disk, "")} == {"/images"}


@each(
    ("facts", "place"),
    [
        ((), "/slow/base.qmpsnap"),
        ((DirFact("/slow", exists=True, writable=False),), "/fast/base.qmpsnap"),
        (
            (
                DirFact("/slow", exists=True, writable=False),
                DirFact("/slow/base.qmpsnap", exists=True, writable=True, free_bytes=1 << 20),
            ),
            "/slow/base.qmpsnap",
        ),
        ((DirFact("/slow", exists=True, writable=True, free_bytes=1 << 10),), "/fast/base.qmpsnap"),
        ((DirFact("/slow/base.qmpsnap", exists=True, writable=False),), "/fast/base.qmpsnap"),
        ((DirFact("/slow", exists=True, writable=False), DirFact("/fast", exists=True, writable=False)), ""),
    ],
)
def test_records_go_to_the_first_place_that_can_be_written(facts: tuple[DirFact, ...], place: str) -> None:
    disk = spread(chain("base <- s1*"), base="/slow", s1="/fast")
    files = FakeFiles(graph(disk))
    files.directories = {fact.path: fact for fact in facts}
    assert state_place(scene(graph(disk), files=files), disk) == place


def test_records_go_nowhere_when_files_are_not_visible() -> None:
    assert state_place(scene(files=FakeFiles(ONE, shared=False)), ONE.disks["vda"]) == ""


@each("lost", [(), ("vda",)])
def test_layers_that_a_moment_is_read_from_do_not_change_without_a_record(lost: tuple[str, ...]) -> None:
    files = files_of("")
    files.records[:] = [replace(MOMENT, lost=lost)]
    now, disk = scene(TWO, files=files), TWO.disks["vda"]
    refuse_unrecorded(now, disk, [BASE])
    files.directories = {
        "/images": DirFact("/images", exists=True, writable=True, free_bytes=1 << 10),
        STATE: DirFact(STATE, exists=True, writable=True, free_bytes=1 << 10),
    }
    full = scene(TWO, files=files)
    refuse_unrecorded(full, disk, [O1])
    with nullcontext() if lost else pytest.raises(InvalidTarget, match="whether 'c1' can still be read"):
        refuse_unrecorded(full, disk, [BASE])


@each("intent", [Commit("vda"), Delete("c1")])
def test_nothing_is_merged_without_a_record_where_moments_are_known(intent: Intent) -> None:
    files = files_of("")
    files.directories = {
        place: DirFact(place, exists=True, writable=False)
        for place in ("/images", STATE, "/images/data.qmpsnap")
    }
    with pytest.raises(InvalidTarget, match="no record can be written"):
        planned(intent, TWO, files=files)


@each("intent", [Commit("vda"), Delete("c1")])
def test_no_layer_changes_where_the_record_of_its_moment_cannot(intent: Intent) -> None:
    files = files_of("")
    files.directories = {STATE: DirFact(STATE, exists=True, writable=False, problem="permission denied")}
    refusal = f"the record of a snapshot in {STATE} cannot be changed: permission denied"
    with pytest.raises(InvalidTarget, match=refusal) as info:
        planned(intent, TWO, files=files)
    assert info.value.hint == "run as a user who can write there, or get that permission"


def test_state_questions_ask_for_every_disk_with_a_medium() -> None:
    both = graph(Disk("cd0"), vda="base*", vdb="data*")
    assert state_questions(both, "") == ("/images/base.qmpsnap", "/images/data.qmpsnap")
    assert with_parents(("/a/x", "/a/y")) == ("/a/x", "/a", "/a/y", "/a")


def test_no_record_is_written_where_it_would_be_refused_when_it_is_read() -> None:
    for file in ("/images/a\nb.qcow2", "/images/\x1b[1m.qcow2"):
        other = with_layer(chain("data*", name="vdb"), 0, file=file)
        for disk in (chain("base <- s1*"), other):
            assert state_place(scene(graph(chain("base <- s1*"), other)), disk) == ""
            assert state_place(scene(graph(disk, other), state_dir="/mine"), disk) == ""
    odd = with_layer(chain("data*", name="vdb"), 0, file="base.qcow2")
    assert state_place(scene(graph(chain("base <- s1*"), odd)), chain("base <- s1*")) == STATE
