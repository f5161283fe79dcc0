from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.model.names import job_id
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.plan import Stage
from qmpsnap.plan.steps import (
    CreateOverlay,
    KeepMoment,
    TakenOverlay,
    TakeSnapshots,
    WriteRecord,
)
from qmpsnap.testing.drawing import MIB, graph
from tests.plan.scenes import NOW, STATE, planned

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.testing.fake_files import FakeFiles

ONE = graph(vda="base <- s1*")
N1 = "/images/base.n1.qcow2"


def taken(intent: Snapshot, of: Graph, files: FakeFiles | None = None) -> TakeSnapshots:
    step = next(step for step in planned(intent, of, files=files).steps if isinstance(step, TakeSnapshots))
    assert isinstance(step, TakeSnapshots)
    return step


def test_snapshot_makes_the_overlay_takes_it_and_keeps_the_moment() -> None:
    plan = planned(Snapshot("n1"), ONE)
    record = plan.record
    assert record is not None
    token = record.record.id.rpartition("-")[2]
    assert record == WriteRecord(
        STATE,
        IntentRecord(
            id=job_id("snapshot", "keep", token),
            op="snapshot",
            created=NOW,
            chains={"vda": ("/images/s1.qcow2", "/images/base.qcow2")},
            made=(N1,),
            overlays={"vda": N1},
            name="n1",
            disk="vda",
            formats={"vda": ("qcow2", "qcow2")},
        ),
    )
    node = plan.after.disks["vda"].active.node if plan.after else ""
    overlay = TakenOverlay("vda", "vda-s1", node, N1, "/images/s1.qcow2", "us")
    assert plan.stages == (
        Stage(
            "create the overlays",
            (record, CreateOverlay(N1, 64 * MIB, "/images/s1.qcow2", "qcow2", "/images/s1.qcow2")),
        ),
        Stage("take the snapshot", (TakeSnapshots((overlay,)),), verify=True),
        Stage("record the snapshot", (KeepMoment(STATE, record.record.id, "n1"),), tidy=True),
    )
    assert plan.chains_before == {"vda": ("/images/s1.qcow2", "/images/base.qcow2")}
    assert plan.chains_after == {"vda": (N1, "/images/s1.qcow2", "/images/base.qcow2")}
    assert (plan.moves, plan.invalid, plan.notes) == (("vda",), (), ())


def test_snapshot_sends_one_transaction_for_all_disks() -> None:
    files = {"vdb": "/other/b.qcow2"}
    step = taken(Snapshot("n1", ("vda", "vdb"), files), graph(vda="base <- s1*", vdb="data.raw*"))
    first, second = step.overlays
    assert step.command == "transaction"
    assert step.arguments == {
        "actions": [
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": "vda-s1",
                    "snapshot-node-name": first.node,
                    "snapshot-file": N1,
                    "format": "qcow2",
                    "mode": "existing",
                },
            },
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": "vdb-data.raw",
                    "snapshot-node-name": second.node,
                    "snapshot-file": "/other/b.qcow2",
                    "format": "qcow2",
                    "mode": "existing",
                },
            },
        ]
    }


def test_snapshot_records_the_format_of_a_raw_layer() -> None:
    steps = planned(Snapshot("n1"), graph(vda="data.raw*")).steps
    assert (
        CreateOverlay("/images/data.n1.qcow2", 64 * MIB, "/images/data.raw", "raw", "/images/data.raw")
        in steps
    )
