from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import AmbiguousName, Busy, FileMoved, NotFound, NotInChain, Refused, Unsupported
from qmpsnap.model.features import Features
from qmpsnap.model.files import OpenFile
from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.plan import view
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.moments import BASE, DATA, O1, O2, S1, TWO, files_of, written_to
from tests.plan.scenes import NOW, job, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.job import Job

SNAPSHOT = InternalSnapshot("1", "in")


def viewed(
    name: str,
    *disks: str,
    of: Graph = TWO,
    files: FakeFiles | None = None,
    jobs: tuple[Job, ...] = (),
) -> tuple[DiskView, ...]:
    """What the planner makes of it, asked as `Planning.views` asks it."""
    files = files or files_of("", of)
    found = files.look(view.ask(of))
    found = files.look(view.ask_again(name, of, found))
    return view.views(name, disks, Scene(of, found, jobs, Features(frozenset()), NOW))


def changed(disk: str, index: int, **changes: object) -> Graph:
    """The graph with one layer of a disk changed."""
    return graph(
        *(with_layer(one, index, **changes) if one.name == disk else one for one in TWO.disks.values())
    )


def test_view_reads_the_layers_that_hold_the_moment_each_with_its_format() -> None:
    assert viewed("c1") == (
        DiskView(
            "vda", "c1", (ViewLayer(S1, "qcow2"), ViewLayer(BASE, "qcow2")), 64 * MIB, allocated=2 * 196_616
        ),
        DiskView("vdb", "c1", (ViewLayer(DATA, "raw"),), 64 * MIB, allocated=196_616),
    )


def test_view_names_the_layers_that_others_have_written_to() -> None:
    vda, vdb = viewed("c1", files=written_to(files_of(""), BASE))
    assert [layer.file for layer in vda.written_since] == [BASE]
    assert vdb.written_since == ()


def test_view_is_of_the_disks_that_are_named_in_any_spelling() -> None:
    assert [one.disk for one in viewed("c1", "/machine/peripheral/vdb/virtio-backend", "vdb")] == ["vdb"]


def test_view_of_an_internal_snapshot_reads_it_beside_what_the_guest_writes() -> None:
    of = changed("vda", 0, snapshots=(SNAPSHOT,))
    (found,) = viewed("in", of=of)
    assert found.files == (O1, S1, BASE)
    assert (found.snapshot, found.written) == (SNAPSHOT, True)


def test_view_of_a_snapshot_inside_a_layer_below_locks_it() -> None:
    (found,) = viewed("in", of=changed("vda", 1, snapshots=(SNAPSHOT,)))
    assert (found.files, found.snapshot, found.written) == ((S1, BASE), SNAPSHOT, False)


def test_view_of_layers_that_are_in_no_chain_now_takes_formats_as_recorded() -> None:
    of = graph(vda="base <- new*", vdb="data.raw <- o2*")
    files = files_of("", TWO)
    record = files.records[0]
    files.records[:] = [replace(record, formats={"vda": ("qcow2", "qcow2"), "vdb": ("raw",)})]
    files.put("/images/new.qcow2", backing=BASE)
    (found, _) = viewed("c1", of=of, files=files)
    assert found.layers == (ViewLayer(S1, "qcow2"), ViewLayer(BASE, "qcow2"))


def test_view_opens_a_block_device_as_such() -> None:
    files = files_of("")
    files.facts[DATA] = replace(files.facts[DATA], kind="block")
    (found,) = viewed("c1", "vdb", files=files)
    assert found.layers == (ViewLayer(DATA, "raw", is_device=True),)


def test_view_names_the_external_data_file() -> None:
    (found,) = viewed("c1", "vda", of=changed("vda", 1, data_file="/images/s1.data"))
    assert found.layers[0] == ViewLayer(S1, "qcow2", data_file="/images/s1.data")


@each(
    ("changes", "error", "text"),
    [
        ({"encrypted": True}, Unsupported, "is encrypted"),
        ({"local": False}, Unsupported, "not a file on this host"),
        ({"format": "vmdk"}, Unsupported, "of format 'vmdk'"),
        ({"window": True}, Unsupported, "is a part of"),
        ({"read_only": False}, Busy, "QEMU has it open for writing"),
    ],
)
def test_view_refuses_a_layer_below(changes: dict[str, Any], error: type[Refused], text: str) -> None:
    with pytest.raises(error, match=text):
        viewed("c1", "vda", of=changed("vda", 2, **changes))


def test_view_of_a_layer_that_stays_writable_says_what_can_be_the_reason() -> None:
    with pytest.raises(Busy, match="QEMU has it open for writing") as caught:
        viewed("c1", "vda", of=changed("vda", 2, read_only=False))
    assert "after a commit that kept its overlay, until it is restarted" in caught.value.hint
    assert "-drive has opened with copy-on-read=on" in caught.value.hint


def test_view_names_the_job_that_writes_into_a_layer() -> None:
    of = changed("vda", 1, read_only=False)
    of = graph(replace(of.disks["vda"], drive="vda-drive"), of.disks["vdb"])
    with pytest.raises(Busy, match="job 'vda-drive' is writing to it") as caught:
        viewed("c1", "vda", of=of, jobs=(job("vda-drive", "stream"),))
    assert caught.value.job_id == "vda-drive"


def test_view_refuses_a_moment_that_a_commit_has_written_into() -> None:
    of = graph(vda="base <- s1*", vdb="data.raw <- o2*")
    with pytest.raises(NotInChain, match="its overlay was committed into it"):
        viewed("c1", "vda", of=of)
    files = files_of("")
    files.records[:] = [replace(files.records[0], lost=("vda",))]
    with pytest.raises(NotInChain, match="no longer holds a snapshot"):
        viewed("c1", "vda", files=files)


def test_view_refuses_what_is_no_snapshot_and_no_disk_of_it() -> None:
    with pytest.raises(NotFound, match="there is no snapshot 'c2'"):
        viewed("c2")
    with pytest.raises(NotFound, match="there is no disk 'vdc'"):
        viewed("c1", "vdc")
    of = graph(*TWO.disks.values(), chain("other*", name="vdc"))
    with pytest.raises(NotFound, match="'c1' does not include vdc"):
        viewed("c1", "vdc", of=of)


def test_view_refuses_a_layer_that_was_moved() -> None:
    files = files_of("")
    files.open[S1] = OpenFile(S1, "moved", path="/elsewhere/s1.qcow2")
    with pytest.raises(FileMoved, match="was moved"):
        viewed("c1", "vda", files=files)


def test_view_is_refused_where_the_images_are_not_visible() -> None:
    of = changed("vda", 0, snapshots=(SNAPSHOT,))
    with pytest.raises(Unsupported, match="not visible from here"):
        viewed("in", of=of, files=FakeFiles(of, shared=False))


def test_only_takes_one_view_and_asks_which_of_more() -> None:
    (first, second) = viewed("c1")
    assert view.only([first]) == first
    with pytest.raises(AmbiguousName, match="more than one disk: vda, vdb") as caught:
        view.only([first, second])
    assert caught.value.candidates == ("vda", "vdb")


def planned_on(of: Graph) -> Plan:
    return Plan("checkpoint", None, ("vda", "vdb"), stages=(), before=of)


def test_plan_shows_how_the_disks_will_be_read_at_its_moment() -> None:
    before = view.foreseen("c3", planned_on(TWO))
    assert before == (
        DiskView(
            "vda", "c3", (ViewLayer(O1, "qcow2"), ViewLayer(S1, "qcow2"), ViewLayer(BASE, "qcow2")), 64 * MIB
        ),
        DiskView("vdb", "c3", (ViewLayer(O2, "qcow2"), ViewLayer(DATA, "raw")), 64 * MIB),
    )
    after = tuple(replace(one, allocated=3 * 196_616) for one in before)
    assert view.as_foreseen(after, before)
    assert not view.as_foreseen(after[:1], before)
    assert not view.as_foreseen((after[0], replace(after[1], layers=after[1].layers[1:])), before)


@each(
    ("index", "changes"),
    [
        (0, {"encrypted": True}),
        (1, {"encrypted": True}),
        (2, {"window": True}),
        (2, {"inner": "qcow2"}),
        (2, {"local": False}),
        (2, {"format": "vmdk"}),
        (1, {"read_only": False}),
    ],
)
def test_plan_does_not_show_how_disks_are_read_of_which_one_would_be_refused(
    index: int, changes: dict[str, object]
) -> None:
    assert view.foreseen("c3", planned_on(changed("vda", index, **changes))) == ()
