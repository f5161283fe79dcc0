from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, Unsupported, WouldLose
from qmpsnap.model.features import Features
from qmpsnap.model.files import Ask, DirFact
from qmpsnap.model.graph import Bitmap, Disk, Graph, InternalSnapshot, Layer, Node
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.parse import GraphReplies, parse_graph
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.scene import (
    Scene,
    delete_owned,
    holders,
    layer_index,
    local_chains,
    recorded_like,
    refuse_any_job,
    refuse_busy,
    refuse_covered,
    refuse_empty,
    refuse_loss,
    state_directories,
    state_place,
    state_questions,
    unique,
    with_parents,
)
from qmpsnap.plan.steps import DeleteNode
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.plan.scenes import NOW, STATE, job, with_layer

ONE = graph(vda="base <- s1*")


def scene(
    of: Graph = ONE, *, files: FakeFiles | None = None, jobs: tuple[Job, ...] = (), state_dir: str = ""
) -> Scene:
    places = state_questions(of, state_dir)
    ask = Ask(directories=with_parents(places), records=places)
    return Scene(of, (files or FakeFiles(of)).look(ask), jobs, Features(frozenset()), NOW, state_dir)


def spread(disk: Disk, **places: str) -> Disk:
    """The disk with the layers of these names in these directories."""
    for index, layer in enumerate(disk.layers):
        name = layer.node.removeprefix(f"{disk.name}-")
        if name in places:
            disk = with_layer(disk, index, file=f"{places[name]}/{name}.qcow2")
    return disk


def test_names_in_use_are_those_of_nodes_jobs_and_records() -> None:
    files = FakeFiles(ONE)
    files.records += [
        IntentRecord("intent", "commit", NOW, directory=STATE),
        MomentRecord("moment", "n1", NOW, directory=STATE),
    ]
    assert scene(files=files, jobs=(job("j"),)).names == {"vda-base", "vda-s1", "j", "intent"}


def test_records_may_lie_beside_the_base_or_the_next_layer_up() -> None:
    disk = spread(chain("base <- s1 <- s2*"), base="/slow", s1="/fast", s2="/fast")
    assert state_directories(disk, "") == (
        "/slow/base.qmpsnap",
        "/fast/base.qmpsnap",
        "/fast/s1.qmpsnap",
        "/fast/s2.qmpsnap",
    )
    assert state_directories(disk, "/mine") == ("/mine",)


@pytest.mark.parametrize("file", ["/dev/vg/base", "nbd://host/x", "base.qcow2"])
def test_records_lie_beside_no_layer_that_is_no_file(file: str) -> None:
    disk = with_layer(chain("base <- s1*"), 1, file=file, local=not file.startswith("nbd"))
    assert {place.rpartition("/")[0] for place in state_directories(disk, "")} == {"/images"}


@pytest.mark.parametrize(
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


def test_state_questions_ask_for_every_disk_with_a_medium() -> None:
    both = graph(Disk("cd0"), vda="base*", vdb="data*")
    assert state_questions(both, "") == ("/images/base.qmpsnap", "/images/data.qmpsnap")
    assert with_parents(("/a/x", "/a/y")) == ("/a/x", "/a", "/a/y")


@pytest.mark.parametrize("qemu", ["7", "11"])
def test_holders_names_the_job_of_each_disk_on_a_real_graph(qemu: str) -> None:
    data = Path(__file__).parent.parent / "model" / "data" / f"filters-{qemu}.json"
    said = json.loads(data.read_text())
    real = parse_graph(GraphReplies.read(said["block"], said["stats"], said["named"]))
    jobs = (Job("c", "commit", JobStatus.READY), Job("s", "stream", JobStatus.RUNNING))
    held = scene(real, jobs=jobs)
    assert {name: [one.id for one in holders(held, disk)] for name, disk in real.disks.items()} == {
        "vda": ["c"],  # mirror_top serves mirrors and commits: rather one refusal too many
        "vdb": ["c"],
        "vdc": ["s"],
    }


@pytest.mark.parametrize(
    ("driver", "kind", "held"),
    [
        ("copy-on-read", "stream", True),
        ("commit_top", "commit", True),
        ("mirror_top", "mirror", True),
        ("mirror_top", "commit", True),
        ("copy-before-write", "backup", True),
        ("copy-on-read", "mirror", False),
        ("throttle", "mirror", False),
    ],
)
@pytest.mark.parametrize("layer", ["base", "s1"])
def test_holders_knows_a_job_by_its_filter(driver: str, kind: str, held: bool, layer: str) -> None:
    filtered = graph(*ONE.disks.values(), nodes=(Node("#f", driver, f"/images/{layer}.qcow2"),))
    found = holders(scene(filtered, jobs=(job("j", kind),)), filtered.disks["vda"])
    assert [one.id for one in found] == (["j"] if held else [])


def test_holders_leaves_out_jobs_of_other_disks_and_those_that_ended() -> None:
    filtered = graph(*ONE.disks.values(), nodes=(Node("#f", "mirror_top", "/images/other.qcow2"),))
    assert holders(scene(filtered, jobs=(job("j"),)), filtered.disks["vda"]) == ()
    near = graph(*ONE.disks.values(), nodes=(Node("#f", "mirror_top", "/images/s1.qcow2"),))
    ended = (job("j", status=JobStatus.CONCLUDED),)
    assert holders(scene(near, jobs=ended), near.disks["vda"]) == ()


def two_mirrors() -> Graph:
    filters = (Node("#f", "mirror_top", "/images/s1.qcow2"), Node("#g", "mirror_top", "/images/data.qcow2"))
    return graph(*ONE.disks.values(), chain("data*", name="vdb"), nodes=filters)


def test_refuse_busy_names_the_job_whose_record_names_the_disk() -> None:
    """Else somebody who does as the hint says stops the other disk's job."""
    both = two_mirrors()
    files = FakeFiles(both)
    ids = {disk: f"qmpsnap-mirror-pivot-0000000{index}" for index, disk in enumerate(both.disks)}
    for disk, job_id in ids.items():
        chains = {disk: both.disks[disk].files}
        files.records.append(IntentRecord(job_id, "mirror", NOW, chains, disk=disk, directory=STATE))
    busy = scene(both, files=files, jobs=tuple(map(job, ids.values())))
    for disk, job_id in ids.items():
        with pytest.raises(Busy, match=f"the chain of {disk} is held by job '{job_id}'") as caught:
            refuse_busy(busy, both.disks[disk])
        assert caught.value.job_id == job_id
        assert caught.value.hint == (
            f"wait for it (qmpsnap job wait {job_id}) or stop it (qmpsnap job cancel {job_id})"
        )


def test_refuse_busy_names_each_job_that_it_may_be_when_nothing_is_recorded() -> None:
    both = two_mirrors()
    with pytest.raises(Busy, match=r"held by job 'a' \(.*\) or job 'b' \(") as caught:
        refuse_busy(scene(both, jobs=(job("a"), job("b"))), both.disks["vdb"])
    assert "cancel" not in caught.value.hint


def test_refuse_busy_says_how_somebody_elses_job_is_touched() -> None:
    held = graph(*ONE.disks.values(), nodes=(Node("#f", "mirror_top", "/images/s1.qcow2"),))
    with pytest.raises(Busy) as caught:
        refuse_busy(scene(held, jobs=(job("theirs"),)), held.disks["vda"])
    assert "qmpsnap job wait theirs --foreign" in caught.value.hint


def test_refuse_busy_knows_a_job_that_is_named_after_the_drive() -> None:
    disk = chain("base*", drive="drv0")
    with pytest.raises(Busy, match=r"held by job 'drv0' \(backup, running\)"):
        refuse_busy(scene(graph(disk), jobs=(job("drv0", "backup"),)), disk)
    refuse_busy(scene(jobs=(job("", "backup"),)), ONE.disks["vda"])


def test_refuse_empty_returns_a_disk_with_a_medium() -> None:
    assert refuse_empty(ONE.disks["vda"]) is ONE.disks["vda"]
    with pytest.raises(Unsupported, match="disk 'cd0' has no medium"):
        refuse_empty(Disk("cd0"))


def test_layer_index_knows_moments_of_this_disk_alone() -> None:
    files = FakeFiles(ONE)
    files.records += [
        MomentRecord("1", "gone", NOW, {"vda": "/images/s0.qcow2"}, directory=STATE),
        MomentRecord("2", "mine", NOW, {"vda": "/images/s1.qcow2"}, directory=STATE),
        MomentRecord("3", "base", NOW, {"vdb": "/images/s1.qcow2"}, directory=STATE),
    ]
    here = scene(files=files)
    assert layer_index(here, ONE.disks["vda"], "mine") == 0
    assert layer_index(here, ONE.disks["vda"], "base") == 1


OVERLAY = Layer("o", "/a/b/o.qcow2", "qcow2", 1, backing="../base.qcow2")
BASE = Layer("b", "/a/base.qcow2", "qcow2", 1)


@pytest.mark.parametrize(
    ("overlay", "base", "name"),
    [
        (OVERLAY, BASE, "../base.qcow2"),
        (OVERLAY, replace(BASE, file="/a/b/base.qcow2"), "base.qcow2"),
        (OVERLAY, replace(BASE, local=False), None),
        (OVERLAY, None, None),
        (replace(OVERLAY, backing="/a/base.qcow2"), BASE, None),
        (replace(OVERLAY, backing="file:base.qcow2"), BASE, None),
        (replace(OVERLAY, backing=None), BASE, None),
        (replace(OVERLAY, file="o.qcow2"), BASE, None),
    ],
)
def test_recorded_like_keeps_a_relative_name_relative(
    overlay: Layer, base: Layer | None, name: str | None
) -> None:
    assert recorded_like(scene(), overlay, (base,) if base else ()) == name


@pytest.mark.parametrize(
    ("overlay", "name"),
    [(OVERLAY, "../base.qcow2"), (replace(OVERLAY, backing="/dev/fdset/1"), "/a/base.qcow2")],
)
@pytest.mark.parametrize("spelled", ["a/base.qcow2", "/dev/fdset/1"])
def test_recorded_like_names_the_file_when_qemus_own_name_leads_nowhere(
    overlay: Layer, name: str, spelled: str
) -> None:
    there = scene(graph(nodes=(Node("f", "file", "/a/base.qcow2", spelled=spelled),), vda="base*"))
    assert recorded_like(there, overlay, (BASE,)) == name


def test_delete_owned_frees_the_nodes_that_we_added_and_no_others() -> None:
    layers = [replace(OVERLAY, node=node) for node in ("qmpsnap-a-00000000", "qmpsnap-00000000", "s1")]
    assert delete_owned(layers) == (DeleteNode("qmpsnap-a-00000000"),)


def test_refuse_loss_names_everything_that_would_be_lost() -> None:
    holds = replace(
        OVERLAY,
        snapshots=(InternalSnapshot("1", "x"),),
        bitmaps=(Bitmap("b", persistent=True), Bitmap("t")),
    )
    with pytest.raises(WouldLose) as caught:
        refuse_loss([BASE, holds], allowed=False)
    assert caught.value.what == (
        "internal snapshot 'x' of /a/b/o.qcow2",
        "persistent bitmap 'b' of /a/b/o.qcow2",
    )
    refuse_loss([holds], allowed=True)
    refuse_loss([BASE], allowed=False)


@pytest.mark.parametrize(
    ("node", "refused"),
    [
        (Node("old", "qcow2", "/o", backing="/images/s1.qcow2"), True),
        (Node("old", "qcow2", "/o", backing="/images/base.qcow2"), False),
        (Node("#f", "mirror_top", "/images/s1.qcow2", backing="/images/s1.qcow2"), False),
        (Node("vda-s1", "qcow2", "/images/s1.qcow2", backing="/images/s1.qcow2"), False),
        (Node("old", "qcow2", "/o"), False),
    ],
)
def test_refuse_covered_names_a_node_of_no_disk_on_the_active_layer(node: Node, refused: bool) -> None:
    covered = scene(graph(*ONE.disks.values(), nodes=(node,)))
    if refused:
        with pytest.raises(Busy) as caught:
            refuse_covered(covered, ONE.disks["vda"])
        assert caught.value.node == "old"
    else:
        refuse_covered(covered, ONE.disks["vda"])


def test_local_chains_leave_out_what_is_no_file() -> None:
    assert local_chains({"vda": ("/a", "nbd://x", "b")}) == {"vda": ("/a",)}


def test_unique_keeps_the_order() -> None:
    assert unique(["b", "a", "b", "c", "a"]) == ("b", "a", "c")


def test_refuse_any_job_names_the_one_that_is_under_way() -> None:
    refuse_any_job(scene(jobs=(job("done", status=JobStatus.CONCLUDED),)))
    with pytest.raises(Busy, match="'theirs'") as caught:
        refuse_any_job(scene(jobs=(job("done", status=JobStatus.CONCLUDED), job("theirs"))))
    assert caught.value.job_id == "theirs"
