from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Node
from qmpsnap.model.job_place import BlockGraph, JobPlace, job_places
from qmpsnap.model.qapi import read
from qmpsnap.model.record import IntentRecord
from qmpsnap.testing.drawing import graph
from tests.each import each
from tests.model.records import mirroring, stages

# Two disks with one base; QEMU's own filter over vda, and the target of a copy.
DISKS = graph(vda="base <- s1 <- s2*", vdb="base <- other*")
TWO = replace(DISKS, nodes={**DISKS.nodes, "#block9": Node("#block9", "qcow2", "/copies/copy.qcow2")})
NODES = ("", "vda-s2", "vda-s1", "vda-base", "vdb-other", "#block8", "#block9")
JOB, S2, S1, BASE, OTHER, FILTER, COPY = range(7)


def asked(*edges: tuple[int, str, int]) -> BlockGraph:
    """As QEMU answers: the job `j`, and who uses what."""
    nodes = [{"id": 0, "type": "block-job", "name": "j"}]
    nodes += [{"id": i, "type": "block-driver", "name": name} for i, name in enumerate(NODES) if i]
    uses = [
        {"parent": parent, "name": name, "child": child, "perm": [], "shared-perm": []}
        for parent, name, child in (
            (FILTER, "backing", S2),
            (S2, "backing", S1),
            (S1, "backing", BASE),
            *edges,
        )
    ]
    return read(BlockGraph, {"nodes": nodes, "edges": uses}, "x-debug-query-block-graph")


@each(
    ("edges", "target"),
    [
        ([(JOB, "main node", FILTER), (JOB, "source", S2), (JOB, "target", COPY)], "/copies/copy.qcow2"),
        ([(JOB, "main node", FILTER), (JOB, "target", COPY)], "/copies/copy.qcow2"),
        (
            [
                (JOB, "main node", FILTER),
                (JOB, "active node", S2),
                (JOB, "intermediate node", S1),
                (JOB, "intermediate node", BASE),
            ],
            "/images/s2.qcow2",
        ),
        (
            [(JOB, "main node", S2), (JOB, "intermediate node", S1), (JOB, "base", BASE)],
            "/images/base.qcow2",
        ),
        ([], ""),
    ],
)
def test_job_places_of_a_stranger_s_job(edges, target):
    disk = "vda" if edges else ""
    assert job_places(TWO, asked(*edges), []) == {"j": JobPlace(disk, target, "")}


def test_job_places_knows_by_a_record_when_it_began_and_what_has_no_job():
    record = IntentRecord(
        id="j",
        op="mirror",
        created="2024-05-01T12:00:00+00:00",
        stages=stages(mirroring("j", "/copies/copy.qcow2")),
    )
    left = IntentRecord(
        id="left", op="snapshot", created="2024-05-02T12:00:00+00:00", chains={"vda": ("/a",), "vdb": ("/b",)}
    )
    seen = asked((JOB, "source", S2), (JOB, "target", COPY))
    places = {
        "j": JobPlace("vda", "/copies/copy.qcow2", "2024-05-01T12:00:00+00:00"),
        "left": JobPlace("vda, vdb", "", "2024-05-02T12:00:00+00:00"),
    }
    assert job_places(TWO, seen, [record, left]) == places
    assert job_places(TWO, BlockGraph(), [record, left]) == places


def test_job_place_spells_itself_as_json():
    place = JobPlace("vda", "/copy", "2026-01-02T03:04:05+00:00")
    assert place.to_json() == {"disk": "vda", "target": "/copy", "created": "2026-01-02T03:04:05+00:00"}
