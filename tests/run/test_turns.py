"""What an operation needs exclusively."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Mirror,
    Save,
    Snapshot,
    Stream,
)
from qmpsnap.run.turns import Claim, claim_of
from qmpsnap.testing.drawing import chain, graph
from tests.each import each
from tests.plan.scenes import planned, with_layer
from tests.run.operations import OLD

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

pytestmark = pytest.mark.timeout(60)

TWO = graph(chain("base <- s1 <- s2*"), with_layer(chain("data <- d1*", name="vdb"), 0, snapshots=OLD))
# Of each pair whether the two may run side by side.
VDA: dict[str, Intent] = {
    "snapshot": Snapshot("n1", ("vda",)),
    "internal": Snapshot("n1", ("vda",), inside=True),
    "stream": Stream("vda", "base"),
    "commit": Commit("vda", "s1", "base"),
    "mirror": Mirror("vda", "/images/copy.qcow2", "pivot"),
}
VDB: dict[str, Intent] = {
    "snapshot": Snapshot("n2", ("vdb",)),
    "internal": Snapshot("n2", ("vdb",), inside=True),
    "stream": Stream("vdb"),
    "commit": Commit("vdb", discard_internal=True),
    "mirror": Mirror("vdb", "/images/other.qcow2", "finish"),
}
WHOLE: dict[str, Intent] = {
    "snapshot of both": Snapshot("n3"),
    "checkpoint": Checkpoint("n3"),
    "checkpoint inside": Checkpoint("n3", "internal"),
    "delete": Delete("old"),
    "save": Save("/images/m"),
}


@each("one", VDA)
@each("other", VDB)
def test_operations_on_disjoint_disks_run_side_by_side(one: str, other: str) -> None:
    first, second = claim_of(planned(VDA[one], TWO)), claim_of(planned(VDB[other], TWO))
    assert not first.meets(second)
    assert not second.meets(first)


@each("one", VDA)
@each("other", [*VDA.values(), *WHOLE.values()])
def test_operations_on_one_disk_and_on_the_machine_do_not(one: str, other: Intent) -> None:
    first, second = claim_of(planned(VDA[one], TWO)), claim_of(planned(other, TWO))
    assert first.meets(second)
    assert second.meets(first)


def test_a_commit_does_not_run_beside_what_reads_one_of_its_layers() -> None:
    writes = Claim(frozenset({"vda"}), frozenset({"/a", "/base"}), frozenset({"/a", "/base"}))
    reads = Claim(frozenset({"vdb"}), frozenset({"/b", "/base"}))
    assert writes.meets(reads)
    assert reads.meets(writes)
    assert not reads.meets(Claim(frozenset({"vdc"}), frozenset({"/c", "/base"})))  # thin clones


def test_what_a_claim_needs_is_said_by_the_plan_and_not_by_the_name_of_the_operation() -> None:
    commit, stream = planned(VDA["commit"], TWO), planned(VDA["stream"], TWO)
    files = frozenset(f"/images/{name}.qcow2" for name in ("s2", "s1", "base"))
    vda = frozenset({"vda"})
    assert claim_of(commit) == Claim(vda, files, writes=files)
    assert claim_of(stream) == Claim(vda, files)
    for alone in ({"prepared": {"vda": "/o"}}, {"run_state": "paused"}, {"disks": ()}):
        for plan in (commit, stream):
            assert claim_of(dataclasses.replace(plan, **alone)).everything


def test_claim_covers_a_smaller_one() -> None:
    whole, part = (
        Claim(frozenset(), frozenset(), everything=True),
        Claim(frozenset({"vda"}), frozenset({"/a"})),
    )
    assert whole.covers(part)
    assert part.covers(part)
    assert not part.covers(whole)
    assert not part.covers(Claim(frozenset({"vda", "vdb"}), frozenset({"/a"})))
