"""E7: nobody else's disk is ever broken by a commit."""

from __future__ import annotations

import pytest

from qmpsnap.errors import InvalidTarget, StillNeeded
from qmpsnap.model.features import Features
from qmpsnap.model.files import BackingLink, Files
from qmpsnap.model.graph import Graph, Node
from qmpsnap.plan.chain import commit
from qmpsnap.plan.intent import Commit
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import NOW, planned, unseen, with_layer

T5 = graph(vda="base <- s1 <- s2 <- s3 <- s4*")
S4, S3, S2, S1, BASE = (f"/images/{name}.qcow2" for name in ("s4", "s3", "s2", "s1", "base"))
OTHER = "/images/other.qcow2"


def standing(on: str, *, at: str = OTHER) -> FakeFiles:
    files = FakeFiles(T5)
    files.put(at, backing=on)
    return files


@each("on", [BASE, S1, S2])
def test_commit_refuses_when_an_image_is_backed_by_what_changes(on: str) -> None:
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s2", "base"), T5, files=standing(on))
    assert (caught.value.by, caught.value.exit_code) == ((OTHER,), 3)


@pytest.mark.parametrize("on", [S3, S4])
def test_commit_goes_on_when_an_image_is_backed_by_a_layer_above_top(on: str) -> None:
    assert planned(Commit("vda", "s2", "base"), T5, files=standing(on)).invalid_if_stopped == (S1, BASE)


def test_commit_goes_on_when_an_image_is_backed_by_a_layer_below_the_base() -> None:
    assert planned(Commit("vda", "s3", "s2"), T5, files=standing(BASE))


def test_commit_goes_on_when_what_stood_there_is_named_invalid() -> None:
    assert planned(Commit("vda", "s2", "base"), T5, files=standing(BASE, at=f"{OTHER}.invalid"))


def test_commit_names_every_image_also_those_that_are_backed_through_others() -> None:
    files = standing(BASE)
    files.put("/images/third.qcow2", backing="other.qcow2")
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s2", "base"), T5, files=files)
    assert set(caught.value.by) == {OTHER, "/images/third.qcow2"}


def test_commit_gives_up_an_image_when_asked_and_names_it_invalid() -> None:
    plan = planned(Commit("vda", "s1", "base", invalidate=(OTHER,)), T5, files=standing(BASE))
    assert plan.invalid == (f"{S1}.invalid", OTHER)
    assert plan.invalid_if_stopped == (BASE, OTHER)
    assert plan.record is not None
    assert plan.record.invalid == (BASE, OTHER)


def test_commit_refuses_when_not_every_image_is_given_up() -> None:
    files = standing(BASE)
    files.put("/images/third.qcow2", backing="other.qcow2")
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s1", "base", invalidate=(OTHER,)), T5, files=files)
    assert caught.value.by == ("/images/third.qcow2",)


def test_commit_takes_another_name_of_the_image_that_is_given_up() -> None:
    files = standing(BASE)
    files.facts["/link"] = files.facts[OTHER]
    assert planned(Commit("vda", "s1", "base", invalidate=("/link",)), T5, files=files)


def test_commit_looks_in_the_directories_that_it_is_given() -> None:
    files = standing(BASE, at="/elsewhere/other.qcow2")
    assert planned(Commit("vda", "s1", "base"), T5, files=files)
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s1", "base", look_in=("/elsewhere",)), T5, files=files)
    assert caught.value.by == ("/elsewhere/other.qcow2",)


def test_commit_looks_in_every_directory_of_the_chain() -> None:
    spread = graph(with_layer(chain("base <- s1 <- s2*"), 0, file="/fast/s2.qcow2"))
    files = FakeFiles(spread)
    files.put("/fast/other.qcow2", backing=BASE)
    with pytest.raises(StillNeeded):
        planned(Commit("vda", "s1", "base"), spread, files=files)


def test_commit_refuses_when_another_disk_of_the_machine_is_backed_by_what_changes() -> None:
    clones = graph(chain("base <- g1*", name="g1"), chain("base <- g2*", name="g2"))
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("g1", invalidate=("/images/g2.qcow2",)), clones, files=FakeFiles(clones))
    assert caught.value.by == ("disk g2",)  # what runs cannot be given up


def test_commit_refuses_when_another_disk_is_backed_there_and_files_are_not_visible() -> None:
    clones = graph(chain("base <- g1*", name="g1"), chain("base <- g2*", name="g2"))
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("g1"), clones, files=unseen(clones))
    assert caught.value.by == ("disk g2",)


def test_commit_refuses_beside_an_image_that_is_seen_where_files_may_not_be_qemus() -> None:
    """A user who may not look at QEMU's process cannot prove that its files are those that we see."""
    machine = graph(vda="base <- s1*")
    found = Files(
        backing_links=(BackingLink("/images/other.qcow2", "/images/base.qcow2"),), looked_in=("/images",)
    )
    scene = Scene(machine, found, (), Features(COMMANDS), NOW)
    with pytest.raises(StillNeeded) as caught:
        commit.plan(Commit("vda"), scene)
    assert caught.value.by == ("/images/other.qcow2",)
    given_up = commit.plan(Commit("vda", invalidate=("/images/other.qcow2",)), scene)
    assert "/images/other.qcow2" in given_up.invalid
    assert "it is not known whether QEMU uses these files" in given_up.notes[0]


def exported(on: str) -> Graph:
    return graph(*T5.disks.values(), nodes=(Node("export", "qcow2", "/far/e.qcow2", backing=on),))


@pytest.mark.parametrize("on", [BASE, S1])
def test_commit_refuses_when_a_node_of_no_disk_is_backed_by_what_changes(on: str) -> None:
    files = standing(on, at="/far/e.qcow2")
    assert planned(Commit("vda", "s1", "base"), T5, files=files)  # nobody looks in /far
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s1", "base"), exported(on), files=files)
    assert caught.value.by == ("/far/e.qcow2",)


def test_commit_goes_on_when_a_node_of_no_disk_is_backed_by_a_layer_above_top() -> None:
    assert planned(Commit("vda", "s2", "base"), exported(S3), files=standing(S3, at="/far/e.qcow2"))


def test_commit_goes_on_when_the_file_of_a_left_node_was_renamed() -> None:
    assert planned(Commit("vda", "s1", "base"), exported(BASE), files=FakeFiles(T5))


@each("where", ["/images", "/look: here"])
def test_commit_refuses_when_a_directory_cannot_be_read(where: str) -> None:
    files = FakeFiles(T5)
    files.unreadable = (f"{where}: permission denied",)
    with pytest.raises(InvalidTarget, match="cannot search for images"):
        planned(Commit("vda", "s1", "base", look_in=("/look: here",)), T5, files=files)


def test_commit_says_which_images_it_could_not_read() -> None:
    files = FakeFiles(T5)
    files.unreadable = ("/images/strange.qcow2: qcow2 of unknown version 9",)
    plan = planned(Commit("vda", "s1", "base"), T5, files=files)
    assert plan.notes == (
        "could not be read, may be backed by the chain: /images/strange.qcow2: qcow2 of unknown version 9",
    )


def test_commit_says_when_a_layer_that_changes_is_no_file_that_can_be_looked_for() -> None:
    remote = graph(with_layer(chain("base <- s1 <- s2*"), 2, file="rbd:pool/base", local=False))
    plan = planned(Commit("vda", "s1", "rbd:pool/base"), remote)
    assert plan.notes == ("images of other machines backed by rbd:pool/base were not searched for",)


def test_commit_refuses_when_a_file_beside_the_chain_may_not_be_read() -> None:
    files = FakeFiles(T5)
    files.unreadable = (f"{OTHER}: permission denied",)
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s2", "base"), T5, files=files)
    assert caught.value.by == (OTHER,)
    assert planned(Commit("vda", "s2", "base", invalidate=(OTHER,)), T5, files=files)


def test_commit_offers_to_give_up_images_and_no_disk_of_the_machine() -> None:
    both = graph(vda="base <- s1*", vdb="base <- d1*")
    files = FakeFiles(both)
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda"), both, files=files)
    assert "--invalidate" not in caught.value.hint.partition(";")[0]
    assert caught.value.hint.startswith("stream vdb first: qmpsnap stream vdb")


def test_commit_takes_no_raw_disk_of_the_machine_for_an_image_backed_by_the_chain() -> None:
    """Its guest wrote a header into it, which names the base; QEMU reads the disk as raw."""
    two = graph(*T5.disks.values(), chain("data.raw*", name="vdb"))
    files = FakeFiles(two)
    data = two.disks["vdb"].active.file
    files.put(data, format="qcow2", backing=BASE)
    assert planned(Commit("vda", "s2", "base"), two, files=files)
    files.put(OTHER, format="qcow2", backing=BASE)
    with pytest.raises(StillNeeded) as caught:
        planned(Commit("vda", "s2", "base"), two, files=files)
    assert caught.value.by == (OTHER,)
    assert "if it is a raw disk whose guest wrote that header" in caught.value.hint
