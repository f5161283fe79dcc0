from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.model.graph import Disk, Filter, Node
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.job_place import BlockGraph, BlockGraphEdge, BlockGraphNode
from qmpsnap.plan.diagnosis.nodes import unexplained
from qmpsnap.testing.drawing import chain, graph
from tests.plan.diagnosis.look import codes, facts, left, only

LEFT = Node("left", "qcow2", "/images/left.qcow2")
OURS = Node("qmpsnap-a-0a1b2c3d", "qcow2", "/images/ours.qcow2", read_only=True)
PROTOCOL = Node("#block1", "file", "/images/base.qcow2")
READ_ONLY = Node("iso", "raw", "/images/cd.iso", read_only=True)
THERE = graph(vda="base*", nodes=(LEFT, OURS, PROTOCOL, READ_ONLY))


def uses(*edges: tuple[str, str]) -> BlockGraph:
    """Who uses which node, as (user, node)."""
    names = list(dict.fromkeys(name for edge in edges for name in edge))
    return BlockGraph(
        tuple(BlockGraphNode(number, "block-driver", name) for number, name in enumerate(names)),
        tuple(BlockGraphEdge(names.index(user), names.index(node), "root") for user, node in edges),
    )


def test_only_nodes_that_no_chain_explains_are_asked_about() -> None:
    assert [node.name for node in unexplained(THERE)] == ["left", OURS.name]


def test_a_node_that_nothing_uses_is_deleted() -> None:
    seen = facts(THERE, uses=uses(("vda", "vda-base"), ("job", OURS.name)))
    found = only(seen)
    assert (found.code, found.subject) == ("node-left", "left")
    assert found.remedy == ("qmpsnap", "qmp", "blockdev-del", '{"node-name": "left"}')
    assert codes(replace(seen, uses=uses(("export", "left"), ("job", OURS.name)))) == []
    assert codes(replace(seen, operations=(replace(left(), live=True),))) == []


def test_without_knowing_who_uses_a_node_only_one_of_ours_is_known_to_be_left() -> None:
    assert codes(facts(THERE, uses=BlockGraph())) == [("node-left", OURS.name)]


def topped(driver: str, *more: Filter) -> Disk:
    """A disk with a filter on top."""
    disk = chain("base <- s1*")
    return replace(disk, root="top", filters=(Filter("top", driver), *more))


@pytest.mark.parametrize("driver", ["copy-before-write", "mirror_top", "commit_top"])
def test_a_filter_that_a_job_put_in_is_taken_off(driver: str) -> None:
    found = only(facts(graph(topped(driver))))
    assert (found.code, found.subject) == ("filter-left", "vda")
    assert found.remedy[2:] == (
        "qom-set",
        '{"path": "/machine/peripheral/vda/virtio-backend", "property": "drive", "value": "vda-s1"}',
    )


def test_a_filter_of_the_user_stays() -> None:
    assert codes(facts(graph(topped("throttle")))) == []
    found = only(facts(graph(topped("copy-before-write", Filter("thr", "throttle")))))
    assert '"value": "thr"' in found.remedy[3]


def test_a_filter_belongs_to_a_job_that_runs_and_to_an_export() -> None:
    assert codes(facts(graph(topped("copy-before-write")), exported=frozenset({"access"}))) == []
    job = Job("b", "backup", JobStatus.RUNNING)
    assert codes(facts(graph(topped("copy-before-write")), jobs=(job,))) == []
