from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, NotFound, TargetExists
from qmpsnap.model.features import Features
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.model.record import IntentRecord, MomentRecord, Origin, Record, moment_of
from qmpsnap.plan import ownership, resume
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.intent import Snapshot
from qmpsnap.plan.scene import Scene
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.model.records import committing, mirroring, overlaying, stages, streaming
from tests.plan.scenes import NOW, STATE, planned

LATER = "2024-05-01T13:00:00.000000+00:00"
ID = "qmpsnap-snapshot-keep-00000001"
A, B, BASE, A1 = (f"/images/{name}.qcow2" for name in ("a", "b", "base", "a.s1"))
COPY = "/images/copy.qcow2"
TAKE = stages(*overlaying({"vda": A1}, {"vda": A}))
OF_A = IntentRecord(ID, "snapshot", NOW, {"vda": (A, BASE)}, stages=TAKE, name="s1", directory=STATE)
ON_BASE = replace(OF_A, chains={"vda": (BASE,)})
FINISH = (finish_record(STATE, (ID,)),)
STREAM = replace(
    OF_A,
    op="stream",
    stages=stages(streaming(ID, above=A, base=None), tidy=FINISH),
    name="",
    after={"vda": (A,)},
)
PIVOTED = replace(
    STREAM, op="commit", stages=stages(committing(ID, base=BASE), tidy=FINISH), after={"vda": (BASE,)}
)
COPIED = replace(STREAM, op="mirror", stages=stages(mirroring(ID, COPY), tidy=FINISH), after={"vda": (COPY,)})
C1 = MomentRecord("m", "c1", NOW, {"vda": "/images/c1.qcow2"}, {"vda": BASE})


@each(
    ("record", "now", "moments", "ours"),
    [
        (OF_A, "base <- a*", (), True),
        (OF_A, "base <- a <- a.s1.qcow2*", (), True),
        (OF_A, "a.s1.qcow2 <- later*", (), True),  # streamed since
        (OF_A, "base <- b*", (), False),
        (OF_A, "base <- a <- b*", (), False),  # a clone of the layer that it covers
        (ON_BASE, "base*", (), True),
        (ON_BASE, "base <- a.s1.qcow2*", (), True),
        (ON_BASE, "base <- b*", (), False),
        (ON_BASE, "base <- c1*", (C1,), True),
        (ON_BASE, "base <- b*", (C1,), False),
        (STREAM, "base <- a <- hand*", (), True),
        (STREAM, "base <- b*", (), False),
        (PIVOTED, "base*", (), True),
        (PIVOTED, "base <- b*", (), False),
        (COPIED, "copy*", (), True),
        (COPIED, "base <- copy <- b*", (), True),
        (COPIED, "base <- b*", (), False),
    ],
)
def test_chain_shows_whose_a_record_is(
    record: IntentRecord, now: str, moments: tuple[Record, ...], *, ours: bool
) -> None:
    assert ownership.stands_here(record, graph(vda=now), moments) is ours


def test_record_of_a_disk_that_is_not_there_shows_nothing() -> None:
    assert not ownership.stands_here(OF_A, graph(vdb="base <- a*"), ())


@each(("then", "now", "ours"), [("1:1", "1:1", True), ("1:1", "2:2", False), ("", "", False)])
def test_record_is_of_the_very_qemu_only_when_both_are_known(then: str, now: str, *, ours: bool) -> None:
    assert ownership.ran_here(replace(OF_A, origin=Origin(True, process=then)), now) is ours


def rested(record: IntentRecord, now: str, *others: Record, jobs: tuple[Job, ...] = ()) -> object:
    of = graph(vda=now)
    files = FakeFiles(of)
    files.records += [record, *others]
    looked = files.look(resume.ask(of, records=(record,)))
    return resume.plan(record.id, Scene(of, looked, jobs, Features(frozenset()), NOW)).steps


@each("record", [OF_A, STREAM, PIVOTED, COPIED])
def test_resume_refuses_a_record_of_another_machine_and_names_its_chains(record: IntentRecord) -> None:
    with pytest.raises(NotFound, match=rf"another machine \(vda: {A} on {BASE}\)"):
        rested(record, "base <- b*")


def test_resume_takes_the_record_of_a_job_that_is_here() -> None:
    job = Job(ID, "stream", JobStatus.CONCLUDED)
    assert finish_record(STATE, (ID,)) in rested(STREAM, "base <- b*", jobs=(job,))  # type: ignore[operator]


def test_resume_refuses_while_the_client_is_at_work() -> None:
    with pytest.raises(Busy, match="its client is still at work"):
        rested(replace(OF_A, live=True), "base <- a*")


def test_resume_of_a_snapshot_whose_moment_is_kept_only_ends_the_record() -> None:
    assert rested(OF_A, "base <- a <- a.s1.qcow2*", moment_of(OF_A)) == (finish_record(STATE, (ID,)),)


@pytest.mark.parametrize("kept", [True, False])
def test_resume_of_a_snapshot_with_the_overlays_of_a_later_one_only_ends_the_record(*, kept: bool) -> None:
    later = replace(OF_A, id="qmpsnap-snapshot-keep-00000002", created=LATER)
    found = moment_of(later) if kept else later
    assert rested(OF_A, "base <- a <- a.s1.qcow2*", found) == (finish_record(STATE, (ID,)),)


@each(
    ("now", "says"), [("base <- a*", "finish it first: qmpsnap job wait"), ("base <- b*", "on the machine")]
)
def test_snapshot_refuses_the_overlay_of_one_that_was_not_ended(now: str, says: str) -> None:
    of = graph(vda=now)
    files = FakeFiles(of)
    files.records.append(
        replace(OF_A, stages=stages(*overlaying({"vda": "/images/base.s1.qcow2"}, {"vda": A})))
    )
    with pytest.raises(TargetExists, match="which is not finished") as caught:
        planned(Snapshot("s1"), of, files=files)
    assert says in caught.value.hint
