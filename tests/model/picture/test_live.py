from __future__ import annotations

from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.job_place import JobPlace
from qmpsnap.model.picture.boxes import Box, Edge, Panel
from qmpsnap.model.picture.live import picture_of_machine
from qmpsnap.testing.drawing import graph

COMMIT = Job("qmpsnap-commit-keep-0a1b2c3d", "commit", JobStatus.RUNNING, 54, 100)
MIRROR = Job("m", "mirror", JobStatus.READY, 1, 1, ready=True)
FAILED = Job("b", "backup", JobStatus.CONCLUDED, 1, 4, error="No space left on device")
MACHINE = graph(vda="base <- s1 <- s2*", vdb="data*")


def shown(*jobs: Job, places: dict[str, JobPlace], disks: tuple[str, ...] = ()) -> dict[str, Panel]:
    (row,) = picture_of_machine(MACHINE, jobs, places, disks=disks).rows
    return {panel.title: panel for panel in row}


def test_a_job_is_beside_its_disk_and_points_to_the_layer_that_it_writes() -> None:
    panel = shown(COMMIT, places={COMMIT.id: JobPlace("vda", "/images/base.qcow2")})["vda"]
    key = f"job {COMMIT.id}"
    assert panel.aside == (Box(key, "commit, 54%", (COMMIT.id,), "job"),)
    assert panel.edges[-1] == Edge(key, "/images/base.qcow2")


def test_a_job_that_writes_another_file_points_to_a_box_of_that() -> None:
    panel = shown(MIRROR, places={"m": JobPlace("vdb", "/fast/copy.qcow2")})["vdb"]
    assert [(box.title, box.lines, box.kind) for box in panel.aside] == [
        ("mirror, 100%", ("m", "ready"), "job"),
        ("copy.qcow2", ("target",), "layer"),
    ]
    assert panel.edges == (Edge(panel.aside[0].key, panel.aside[1].key),)


def test_a_job_of_two_disks_is_beside_both() -> None:
    panels = shown(COMMIT, places={COMMIT.id: JobPlace("vda, vdb", "/images/base.qcow2")})
    assert [len(panels[disk].aside) for disk in ("vda", "vdb")] == [1, 2]


def test_a_job_of_no_known_disk_has_a_panel_of_its_own() -> None:
    panels = shown(FAILED, places={})
    assert list(panels) == ["vda", "vdb", "other jobs"]
    (box,) = panels["other jobs"].boxes
    assert (box.title, box.lines) == ("backup, 25%", ("b", "concluded", "error: No space left on device"))


def test_only_the_disks_asked_for_are_shown() -> None:
    assert list(shown(COMMIT, FAILED, places={COMMIT.id: JobPlace("vda")}, disks=("vdb",))) == ["vdb"]
