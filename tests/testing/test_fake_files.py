from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.files import Ask, BackingLink, DirFact, Files
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.memory import LayerState, MemoryNote
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.commands.files import (
    create_file,
    create_memory,
    create_overlay,
    create_store,
    remove_file,
    remove_orphan,
    remove_state,
    retire_file,
    seal_memory,
    seal_store,
)
from qmpsnap.plan.commands.records import (
    finish_record,
    keep_branch,
    keep_link,
    keep_lost,
    keep_moment,
    keep_place,
    write_record,
)
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

ONE = graph(vda="base <- s1*")
S1, BASE = "/images/s1.qcow2", "/images/base.qcow2"
RECORD = IntentRecord("r", "snapshot", "2024-05-01T12:00:00+00:00", prepared={"vda": "/o"}, name="n1")


def test_fake_files_are_those_of_the_graph() -> None:
    found = FakeFiles(ONE).look(Ask(files=(S1, BASE, "/images/none")))
    assert [fact.kind for fact in found.files.values()] == ["regular", "regular", "missing"]
    header = found.files[S1].header
    assert header is not None
    assert (header.format, header.backing, header.backing_format) == ("qcow2", BASE, "qcow2")
    assert found.backing_links == (BackingLink(S1, BASE),)


def test_fake_files_show_nothing_when_they_are_not_shared() -> None:
    assert FakeFiles(ONE, shared=False).look(Ask(files=(S1,), survey=("/images",))) == Files()


def test_fake_files_survey_a_directory_but_not_what_is_named_invalid() -> None:
    files = FakeFiles(ONE)
    files.put("/images/x.qcow2", backing="base.qcow2")
    files.put("/images/y.qcow2.invalid", backing=BASE)
    files.put("/else/z.qcow2", backing=BASE)
    assert files.look(Ask(survey=("/images",))).backed_by(BASE) == (S1, "/images/x.qcow2")


def test_fake_files_have_every_directory_but_those_of_records_until_one_is_written() -> None:
    files = FakeFiles(ONE)
    files.directories["/full"] = DirFact("/full", exists=True, writable=False)
    ask = Ask(directories=("/any", "/full", "/r.qmpsnap"), records=("/r.qmpsnap",))
    facts = files.look(ask).directories
    assert [(one.exists, one.writable) for one in facts.values()] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    files.perform(write_record("/r.qmpsnap", RECORD))
    assert files.look(ask).directories["/r.qmpsnap"].exists
    assert [record.directory for record in files.look(ask).records] == ["/r.qmpsnap"]


@each(
    ("step", "names"),
    [
        (create_overlay("/o", size_bytes=1, backing=S1, backing_format="qcow2", like=S1), (BASE, S1, "/o")),
        (create_file("/o", S1), (BASE, S1, "/o")),
        (retire_file(S1, "rename", "/z"), (BASE, "/z")),
        (retire_file(S1, "remove", ""), (BASE,)),
        (retire_file(S1, "keep", ""), (BASE, S1)),
        (remove_file(S1), (BASE,)),
        (remove_orphan("/none", None), (BASE, S1)),
    ],
)
def test_fake_files_do_a_step(step: Step, names: tuple[str, ...]) -> None:
    files = FakeFiles(ONE)
    files.perform(step)
    assert files.names == names


@each(
    "step",
    [
        create_overlay(BASE, size_bytes=1, backing=S1, backing_format="qcow2", like=S1),
        create_file(BASE, S1),
        retire_file(S1, "rename", BASE),
    ],
)
def test_fake_files_never_replace_one(step: Step) -> None:
    with pytest.raises(TargetExists):
        FakeFiles(ONE).perform(step)


def test_fake_files_keep_a_moment_and_finish_records() -> None:
    files = FakeFiles(ONE)
    files.perform(write_record("/r", RECORD))
    files.perform(keep_moment("/r", "r", "n1"))
    assert [type(record) for record in files.records] == [MomentRecord]
    with pytest.raises(InvalidTarget, match="no longer exists"):
        files.perform(keep_moment("/r", "r", "n1"))
    files.perform(finish_record("/other", ("r",)))
    assert len(files.records) == 1
    files.perform(finish_record("/r", ("r",)))
    assert len(files.records) == 1  # a moment outlives the operation that made it
    files.perform(finish_record("/r", (), ("r",)))
    assert files.records == []


def test_fake_files_remember_when_one_was_written_into() -> None:
    files = FakeFiles(ONE)
    before = files.facts[BASE].modified
    files.touch(BASE)
    files.touch("/none")
    files.follow(ONE)
    assert files.facts[BASE].modified > before > 0


PARTIAL = "/images/m.partial"
KEPT = Fingerprint("pc", 1, (), {}, {})


def test_fake_files_keep_a_memory_file_with_its_note_under_its_name() -> None:
    files = FakeFiles(ONE)
    files.perform(create_memory(PARTIAL))
    seal = seal_memory(
        PARTIAL, "/images/m", id="id", name="c1", running=True, fingerprint=KEPT, layers=(("vda", S1),)
    )
    files.perform(seal)
    fact = files.look(Ask(memories=("/images/m",))).memories["/images/m"]
    assert fact.note == MemoryNote(
        "id", "c1", fact.size, True, KEPT, (LayerState("vda", S1, 0, 196_616, 10**9),)
    )
    assert set(files.names) == {BASE, S1, "/images/m"}
    files.perform(remove_state("/images/m", "i"))
    assert not files.look(Ask(memories=("/images/m",))).memories["/images/m"].exists


def test_fake_files_keep_a_store_with_a_snapshot_inside() -> None:
    files = FakeFiles(ONE)
    files.perform(create_store(PARTIAL, S1))
    files.perform(seal_store(PARTIAL, "/images/m"))
    header = files.facts["/images/m"].header
    assert header is not None
    assert (header.format, header.snapshot_count) == ("qcow2", 1)


@each("make", [create_memory(S1), create_store(S1, BASE)])
def test_fake_files_make_no_state_over_another_file(make: Step) -> None:
    with pytest.raises(TargetExists):
        FakeFiles(ONE).perform(make)


def test_fake_files_know_overlays_that_were_never_touched() -> None:
    files = FakeFiles(ONE)
    ask = Ask(fresh=((S1, BASE), (BASE, S1), ("/none", BASE)))
    assert files.look(ask).fresh == {S1}
    files.touch(S1)
    assert files.look(ask).fresh == frozenset()


def test_fake_files_add_a_branch_to_its_moment() -> None:
    files = FakeFiles(ONE)
    files.records.append(MomentRecord("r", "c1", RECORD.created, directory="/r"))
    files.perform(keep_branch("/r", "r", {"vda": "/o"}))
    (moment,) = files.records
    assert isinstance(moment, MomentRecord)
    assert moment.branches == ({"vda": "/o"},)
    with pytest.raises(InvalidTarget, match="no longer exists"):
        files.perform(keep_branch("/r", "other", {}))


def test_fake_files_keep_what_became_of_a_moment_in_its_record() -> None:
    files = FakeFiles(ONE)
    files.records.append(MomentRecord("r", "c1", RECORD.created, covered={"vda": S1}, directory="/r"))
    files.perform(keep_place("/r", "r", "vda", (S1,), BASE))
    files.perform(keep_lost("/r", "r", "vda"))
    files.perform(keep_link("/r", "r"))
    (moment,) = files.records
    assert isinstance(moment, MomentRecord)
    assert (moment.covered, moment.lost, moment.deleted) == ({"vda": BASE}, ("vda",), True)
