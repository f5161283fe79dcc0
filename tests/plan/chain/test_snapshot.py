from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.model.graph import Io
from qmpsnap.model.names import job_id
from qmpsnap.model.record import IntentRecord, Member, Origin, moment_of
from qmpsnap.model.step import Overlay, Stage
from qmpsnap.plan.commands.block import open_overlay, snapshot_sync
from qmpsnap.plan.commands.files import LuksHeader, create_overlay
from qmpsnap.plan.commands.records import keep_moment, write_record
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.intent import Snapshot
from qmpsnap.testing.drawing import MIB, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.plan.scenes import NOW, STATE, encrypted, overlays_of, planned

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.step import Step

ONE = graph(vda="base <- s1*")
N1 = "/images/base.n1.qcow2"


def taken(intent: Snapshot, of: Graph, files: FakeFiles | None = None) -> Step:
    return next(step for step in planned(intent, of, files=files).steps if step.command == "transaction")


def test_snapshot_makes_the_overlay_takes_it_and_keeps_the_moment() -> None:
    plan = planned(Snapshot("n1"), ONE)
    record = plan.record
    assert record is not None
    token = record.id.rpartition("-")[2]
    assert record == IntentRecord(
        id=job_id("snapshot", "keep", token),
        op="snapshot",
        created=NOW,
        chains={"vda": ("/images/s1.qcow2", "/images/base.qcow2")},
        after={"vda": (N1, "/images/s1.qcow2", "/images/base.qcow2")},
        formats={"vda": ("qcow2", "qcow2")},
        stages=(replace(plan.stages[0], steps=plan.stages[0].steps[1:]), *plan.stages[1:]),
        name="n1",
        moves=("vda",),
    )
    make = create_overlay(
        N1,
        size_bytes=64 * MIB,
        backing="/images/s1.qcow2",
        backing_format="qcow2",
        like="/images/s1.qcow2",
    )
    node = plan.after.disks["vda"].active.node if plan.after else ""
    overlay = Overlay("vda", "vda-s1", node, N1, "/images/s1.qcow2", "us")
    assert plan.stages == (
        Stage("create the overlays", (write_record(STATE, record), make)),
        Stage("take the snapshot", (snapshot_sync((overlay,)),), verify=True),
        Stage("record the snapshot", (keep_moment(STATE, record.id, "n1"),), tidy=True),
    )
    assert plan.chains_before == {"vda": ("/images/s1.qcow2", "/images/base.qcow2")}
    assert plan.chains_after == {"vda": (N1, "/images/s1.qcow2", "/images/base.qcow2")}
    assert (plan.moves, plan.invalid, plan.notes) == (("vda",), (), ())


def test_snapshot_sends_one_transaction_for_all_disks() -> None:
    files = {"vdb": "/other/b.qcow2"}
    step = taken(Snapshot("n1", ("vda", "vdb"), files), graph(vda="base <- s1*", vdb="data.raw*"))
    first, second = overlays_of(step)
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
    make = create_overlay(
        "/images/data.n1.qcow2",
        size_bytes=64 * MIB,
        backing="/images/data.raw",
        backing_format="raw",
        like="/images/data.raw",
    )
    assert make in planned(Snapshot("n1"), graph(vda="data.raw*")).steps


def test_snapshot_of_an_encrypted_disk_has_an_encrypted_overlay_that_is_opened_before() -> None:
    of, files = encrypted("base <- s1*")
    plan = planned(Snapshot("n1"), of, files=files)
    make, opened, take = plan.steps[1:4]
    assert (make.arguments["luks_of"], make.detail["luks"]) == (
        "/images/s1.qcow2",
        LuksHeader("/images/s1.qcow2", 1, 2),
    )
    (overlay,) = overlays_of(take)
    assert opened == open_overlay(overlay, Io())
    assert (overlay.secret, overlay.node[:10]) == ("sec0", "qmpsnap-a-")
    (note,) = plan.notes
    assert note.startswith(f"{N1} is encrypted as the disk was")
    assert note.endswith("with the secret 'sec0'")
    assert plan.after is not None
    assert [layer.secret for layer in plan.after.disks["vda"].layers] == ["sec0"] * 3
    plain = planned(Snapshot("n1", plain=True), of, files=files)
    assert overlays_of(plain.steps[2])[0].secret == ""


def test_snapshot_of_a_group_pauses_a_running_guest_and_names_the_machine() -> None:
    member = Member("1f", "web", ("web", "db"))
    for running in (True, False):
        plan = planned(Snapshot("n1", member=member), ONE, machine=a_machine(ONE, running=running))
        record = plan.record
        assert record is not None
        assert (record.member, record.origin) == (member, Origin(running, a_machine(ONE).process))
        assert moment_of(record).member == member
        commands = [step.command for step in plan.stages[1].steps]
        assert commands == ["stop", "transaction", *(["cont"] if running else [])]
        assert plan.chains_after["vda"][0] == "/images/base.web.n1.qcow2"
        assert plan.stages[1].steps[0].undo == ((cont(),) if running else ())


def test_snapshot_of_a_group_is_refused_where_no_record_can_be_written() -> None:
    files = FakeFiles(ONE, shared=False)
    with pytest.raises(Unsupported, match="no writable directory for records"):
        planned(Snapshot("n1", member=Member("1f", "web", ("web",))), ONE, files=files)
