from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Disk, InternalSnapshot
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.moments import Moment, MomentPart, find_moments, state_places
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_changes import deleted_from
from qmpsnap.testing.drawing import chain, graph
from tests.plan.scenes import with_layer

S2, S1, BASE = "/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"
NOON = "2024-05-03T12:00:00+00:00"
CHAIN = graph(vda="base <- s1 <- s2*")
FIRST = MomentRecord(
    "qmpsnap-snapshot-keep-1", "first", "2024-05-01T12:00:00+00:00", {"vda": S1}, {"vda": BASE}
)
LATER = MomentRecord(
    "qmpsnap-snapshot-keep-2", "later", "2024-05-02T12:00:00+00:00", {"vda": S2}, {"vda": S1}
)


def test_moments_tell_which_file_holds_what_and_what_is_current() -> None:
    found = find_moments(CHAIN, (LATER, FIRST))
    first, later = (
        MomentPart("vda", one, overlay=on, allocated=196_616) for one, on in ((BASE, S1), (S1, S2))
    )
    assert found.moments == (
        Moment("first", "external", FIRST.created, (first,), record=FIRST),
        Moment("later", "external", LATER.created, (later,), current=True, record=LATER),
    )
    assert found.current == {"vda": "later"}
    assert [one.allocated for one in found.moments] == [196_616, 196_616]


def test_moments_leave_out_records_of_overlays_that_are_in_no_chain() -> None:
    found = find_moments(graph(vda="base <- s1*"), (LATER, FIRST))
    assert [one.name for one in found.moments] == ["first"]


def test_moments_say_when_the_holder_is_not_below_its_overlay_any_more() -> None:
    (moment,) = find_moments(graph(vda="base <- s2*"), (LATER,)).moments
    assert moment.held == (MomentPart("vda", S1, overlay=S2, allocated=196_616, in_chain=False),)


def test_moments_say_that_a_commit_wrote_into_the_holder() -> None:
    began = IntentRecord(
        "qmpsnap-commit-keep-0", "commit", "2024-05-03T12:00:00+00:00", chains={}, invalid=(BASE, S1)
    )
    found = find_moments(CHAIN, (FIRST, LATER, began))
    assert [one.held[0].invalid for one in found.moments] == [True, True]


def test_moments_inside_images_of_one_name_are_one_moment() -> None:
    disks = [
        with_layer(chain("base <- s1*"), 0, snapshots=(InternalSnapshot("3", "in", 4096, 1714564800.5),)),
        with_layer(chain("data*", name="vdb"), 0, snapshots=(InternalSnapshot("1", "in", 0, 1714564800.25),)),
    ]
    (moment,) = find_moments(graph(*disks), ()).moments
    assert moment == Moment(
        "in",
        "internal",
        "2024-05-01T12:00:00.250000+00:00",
        (MomentPart("vda", S1, id="3", vm_state_size=4096), MomentPart("vdb", "/images/data.qcow2", id="1")),
    )
    assert (moment.disks, moment.vm_state_size, moment.allocated) == (("vda", "vdb"), 4096, None)


def test_moments_inside_a_layer_below_are_not_in_the_chain() -> None:
    disk = with_layer(chain("base <- s1*"), 1, snapshots=(InternalSnapshot("1", "in"),))
    (moment,) = find_moments(graph(disk), ()).moments
    assert [(one.file, one.in_chain) for one in moment.held] == [(BASE, False)]


def test_moments_of_one_name_and_both_kinds_are_two() -> None:
    disk = with_layer(chain("base <- s1 <- s2*"), 0, snapshots=(InternalSnapshot("1", "first"),))
    found = find_moments(graph(disk), (FIRST,))
    assert {one.kind for one in found.named("first")} == {"external", "internal"}
    assert found.named("nope") == ()


def test_moments_have_no_current_one_where_no_record_tells() -> None:
    assert find_moments(CHAIN, (FIRST,)).current == {"vda": None}


BRANCH = replace(FIRST, branches=({"vda": "/images/r1.qcow2"},))


def test_moments_are_current_at_an_overlay_that_a_revert_made() -> None:
    found = find_moments(graph(vda="base <- r1*"), (BRANCH,))
    assert found.moments[0].held == (MomentPart("vda", BASE, overlay="/images/r1.qcow2", allocated=196_616),)
    assert found.current == {"vda": "first"}


def test_moments_know_those_that_a_revert_left_aside() -> None:
    found = find_moments(graph(vda="base <- r1*"), (LATER, BRANCH))
    assert [(one.name, one.held[0].in_chain) for one in found.moments] == [("first", True), ("later", False)]


def test_moments_leave_out_those_of_another_machine_on_the_same_base() -> None:
    theirs = MomentRecord("x", "theirs", FIRST.created, {"vda": "/images/o.qcow2"}, {"vda": BASE})
    found = find_moments(graph(vda="base <- r1*"), (theirs, BRANCH))
    assert [one.name for one in found.moments] == ["first"]


KEPT = KeptState("stop", "/images/m", "", True, Fingerprint("pc", 7, (), {}, {}))


def test_moments_tell_how_and_where_their_vm_state_is_kept() -> None:
    external = find_moments(CHAIN, (replace(LATER, state=KEPT), FIRST)).moments
    assert [(one.mode, one.vm_state_file) for one in external] == [("", ""), ("stop", "/images/m")]
    disk = with_layer(chain("base*"), 0, snapshots=(InternalSnapshot("1", "in", 4096),))
    (internal,) = find_moments(graph(disk), ()).moments
    assert (internal.mode, internal.vm_state_file) == ("internal", "")


def test_moments_left_aside_are_known_through_others_that_were_left_aside() -> None:
    third = MomentRecord("r3", "third", "2024-05-03T12:00:00+00:00", {"vda": "/images/s3.qcow2"}, {"vda": S2})
    found = find_moments(graph(vda="base <- r1*"), (third, LATER, BRANCH))
    assert [one.name for one in found.moments] == ["first", "later", "third"]


def test_moments_whose_overlay_was_folded_are_none_of_the_family() -> None:
    found = find_moments(graph(vda="base <- s1*"), (FIRST, LATER))  # s2 was folded into s1
    assert [one.name for one in found.moments] == ["first"]


def test_moments_are_on_the_disks_that_the_machine_has() -> None:
    both = replace(FIRST, overlays={"vda": S1, "vdb": "/b"}, covered={"vda": BASE, "vdb": "/a"})
    (moment,) = find_moments(graph(vda="base <- s1*"), (both,)).moments
    assert moment.disks == ("vda",)


def test_moments_of_unplugged_disks_are_none_of_the_machine() -> None:
    gone = MomentRecord("g", "gone", NOON, {"vdb": "/b"}, {"vdb": "/a"}, {"vdb": ("/a",)})
    both = replace(FIRST, overlays={"vda": S1, "vdb": "/a"}, covered={"vda": BASE, "vdb": "/z"})
    assert [one.name for one in find_moments(graph(vda="base <- s1*"), (both, gone)).moments] == ["first"]


def test_moments_are_known_of_a_drive_whose_medium_was_taken_out() -> None:
    both = replace(FIRST, overlays={"vda": S1, "fd0": "/f1"}, covered={"vda": BASE, "fd0": "/f0"})
    found = find_moments(graph(Disk("fd0"), vda="base <- s1*"), (both,))
    assert [(part.disk, part.in_chain) for part in found.moments[0].held] == [("fd0", False), ("vda", True)]
    assert found.current == {"vda": "first"}


def test_moments_are_linked_through_an_overlay_that_has_none() -> None:
    """Somebody else's snapshot, or a checkpoint that failed, has put one in between."""
    x, o2 = "/images/x.qcow2", "/images/o2.qcow2"
    after = MomentRecord("r3", "after", NOON, {"vda": o2}, {"vda": x}, {"vda": (x, S1, BASE)})
    noted = replace(BRANCH, continued=({"vda": x},))
    found = find_moments(graph(vda="base <- r1*"), (noted, after))
    assert [one.name for one in found.moments] == ["first", "after"]


def test_moments_of_a_clone_on_a_layer_that_both_read_are_left_out() -> None:
    clone = "/images/clone.qcow2"
    theirs = MomentRecord("x", "theirs", NOON, {"vda": "/o"}, {"vda": clone}, {"vda": (clone, S1, BASE)})
    found = find_moments(CHAIN, (FIRST, LATER, theirs))
    assert [one.name for one in found.moments] == ["first", "later"]


def test_moments_that_were_deleted_are_not_listed_and_link_the_others() -> None:
    found = find_moments(graph(vda="base <- r1*"), (replace(BRANCH, deleted=True), LATER))
    assert [one.name for one in found.moments] == ["later"]
    assert found.current == {"vda": None}


def test_moments_that_were_deleted_from_one_disk_are_on_the_other() -> None:
    both = replace(FIRST, overlays={"vda": S1, "vdb": "/d"}, covered={"vda": BASE, "vdb": "/b"})
    (moment,) = find_moments(graph(vda="base <- s1*", vdb="b <- d*"), (deleted_from(both, ["vda"]),)).moments
    assert moment.disks == ("vdb",)
    assert find_moments(graph(vda="base <- s1*"), (deleted_from(both, ["vda"]),)).moments == ()
    assert deleted_from(deleted_from(both, ["vda"]), ["vdb"]).deleted


def test_moments_are_none_of_the_family_whose_layer_the_guest_writes_to() -> None:
    x = "/images/x.qcow2"
    lost = MomentRecord("r3", "lost", NOON, {"vda": "/o"}, {"vda": x}, {"vda": (x, S2, S1, BASE)})
    found = find_moments(graph(vda="base <- s1*"), (FIRST, replace(LATER, chains={"vda": (S1, BASE)}), lost))
    assert [one.name for one in found.moments] == ["first"]


def test_moments_name_the_vm_state_that_no_record_needs() -> None:
    state = KeptState("stop", "/images/base.c1.memory", "", True, KEPT.fingerprint, token="0a1b2c3d")
    lies = (state.file, state.partial, "/images/base.gone.memory")
    found = find_moments(CHAIN, (replace(LATER, state=state),), states=lies)
    assert found.unneeded == ("/images/base.gone.memory",)
    assert state_places(CHAIN) == (("/images", "base"),)


def test_a_notebook_shows_the_moments_and_the_tree() -> None:
    found = find_moments(CHAIN, (LATER, FIRST))
    page = found._repr_html_()
    assert "<td>first</td><td>external</td><td>2024-05-01T12:00:00+00:00</td>" in page
    assert page.index("<td>later</td>") < page.index("<img ")
