from __future__ import annotations

import json
from pathlib import Path

import pytest

from qmpsnap.errors import Busy
from qmpsnap.model.graph import Graph, Node
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.parse import GraphReplies, parse_graph
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.checks.disk import holders, refuse_busy, refuse_in_use, refuse_jobs
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import NOW, STATE, job, scene

ONE = graph(vda="base <- s1*")


@each("qemu", ["7", "11"])
def test_holders_names_the_job_of_each_disk_on_a_real_graph(qemu: str) -> None:
    data = Path(__file__).parents[2] / "model" / "data" / f"filters-{qemu}.json"
    said = json.loads(data.read_text())
    real = parse_graph(GraphReplies.read(said["block"], said["stats"], said["named"]))
    jobs = (Job("c", "commit", JobStatus.READY), Job("s", "stream", JobStatus.RUNNING))
    held = scene(real, jobs=jobs)
    assert {name: [one.id for one in holders(held, disk)] for name, disk in real.disks.items()} == {
        "vda": ["c"],  # mirror_top serves mirrors and commits: rather one refusal too many
        "vdb": ["c"],
        "vdc": ["s"],
    }


@each(
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
@each("layer", ["base", "s1"])
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
        files.records.append(IntentRecord(job_id, "mirror", NOW, chains, directory=STATE))
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


@each(
    ("node", "refused"),
    [
        (Node("old", "qcow2", "/o", backing="/images/s1.qcow2"), True),
        (Node("old", "qcow2", "/o", backing="/images/base.qcow2"), False),
        (Node("#f", "mirror_top", "/images/s1.qcow2", backing="/images/s1.qcow2"), False),
        (Node("vda-s1", "qcow2", "/images/s1.qcow2", backing="/images/s1.qcow2"), False),
        (Node("old", "qcow2", "/o"), False),
    ],
)
def test_refuse_in_use_names_a_node_of_no_disk_on_the_active_layer(node: Node, refused: bool) -> None:
    covered = scene(graph(*ONE.disks.values(), nodes=(node,)))
    if refused:
        with pytest.raises(Busy) as caught:
            refuse_in_use(covered, ONE.disks["vda"])
        assert caught.value.node == "old"
    else:
        refuse_in_use(covered, ONE.disks["vda"])


def test_refuse_jobs_names_the_one_that_is_under_way() -> None:
    refuse_jobs([job("done", status=JobStatus.CONCLUDED)])
    with pytest.raises(Busy, match="'theirs'") as caught:
        refuse_jobs([job("done", status=JobStatus.CONCLUDED), job("theirs")])
    assert caught.value.job_id == "theirs"
