from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace
from structlog.testing import capture_logs

from qmpsnap.model.files import OpenFile
from qmpsnap.model.record import IntentRecord, MomentRecord, Origin
from qmpsnap.run.start_check import StartCheck
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.each import each
from tests.model.records import overlaying, stages
from tests.plan.scenes import NOW, STATE

if TYPE_CHECKING:
    import pytest

BASE = "/images/base.qcow2"


async def test_warnings_are_logged_once_and_go_on_until_the_disk_writes_elsewhere() -> None:
    there = graph(vda="base*")
    target = FakeTarget(there)
    target.files.put("/images/s1.qcow2", backing=BASE)
    started = StartCheck(target, "")
    assert not started.found
    with capture_logs() as logs:
        (warning,) = await started.warnings(there)
        assert await started.warnings(there) == (warning,)
    assert started.found == (warning,)
    assert [one["event"] for one in logs] == ["machine.started_below"]
    assert (logs[0]["disk"], logs[0]["newest"]) == ("vda", ["/images/s1.qcow2"])
    assert warning.endswith("quit it and start it from /images/s1.qcow2")
    assert not await started.warnings(graph(vda="base <- s9*"))
    assert not started.found


async def test_of_a_machine_that_is_off_it_is_said_that_a_backing_file_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = graph(vda="base*")
    target = FakeTarget(there)
    target.files.put("/images/s1.qcow2", backing=BASE)
    monkeypatch.setattr(target, "guest", None)
    started = StartCheck(target, "")
    with capture_logs() as logs:
        (line,) = await started.warnings(there)
    assert logs == []
    assert line == (
        f"{BASE}, named for vda, is the backing file of /images/s1.qcow2: only a snapshot may branch from "
        "it. If the machine has a newer layer, name that: -i vda=/images/s1.qcow2"
    )
    assert [one.newest for one in started.started_below(there)] == [("/images/s1.qcow2",)]


async def test_overlays_that_lie_elsewhere_are_found_by_their_records() -> None:
    there = graph(vda="base*")
    target = FakeTarget(there)
    target.files.put("/far/s1.qcow2", backing=BASE)
    assert await StartCheck(target, "").warnings(there) == ()
    target.files.records.append(
        MomentRecord("1", "one", NOW, {"vda": "/far/s1.qcow2"}, {"vda": BASE}, directory=STATE)
    )
    (warning,) = await StartCheck(target, "").warnings(there)
    assert warning.endswith("start it from /far/s1.qcow2")


@each(("process", "count"), [("1:1", 0), ("9:9", 1), ("", 1)])
async def test_overlay_of_an_interrupted_operation_is_not_meant_on_the_same_qemu(
    process: str, count: int
) -> None:
    there = graph(vda="base*")
    target = FakeTarget(there)
    target.files.put("/images/s1.qcow2", backing=BASE)
    steps = stages(*overlaying({"vda": "/images/s1.qcow2"}, {"vda": BASE}))
    origin = Origin(running=True, process=process)
    record = IntentRecord("1", "checkpoint", NOW, {"vda": (BASE,)}, stages=steps, origin=origin)
    target.files.records.append(replace(record, directory=STATE))
    assert len(await StartCheck(target, "").warnings(there)) == count


async def test_nothing_is_said_where_files_are_not_visible() -> None:
    there = graph(vda="base*")
    target = FakeTarget(there)
    target.files.put("/images/s1.qcow2", backing=BASE)
    target.files.shared = False
    assert await StartCheck(target, "").warnings(there) == ()


async def test_lost_names_are_reported_until_they_lead_to_the_file_again() -> None:
    there = graph(vda="base <- s1*")
    target = FakeTarget(there)
    target.files.open[BASE] = OpenFile(BASE, "moved", "/images/x.qcow2", 1, 7)
    started = StartCheck(target, "")
    with capture_logs() as logs:
        (warning,) = await started.warnings(there)
        assert await started.warnings(there) == (warning,)
    assert [one["event"] for one in logs] == ["layer.name_lost"]
    assert warning == (
        f"{BASE}, which vda has open, was moved: that file is now /images/x.qcow2; "
        f"move it back: mv -T /images/x.qcow2 {BASE}, "
        "or copy the disk to a new file: qmpsnap mirror vda FILE --pivot"
    )
    del target.files.open[BASE]
    assert not await started.warnings(there)
