import json

import pytest
from msgspec.structs import replace

from qmpsnap.model.record import IntentRecord, MomentRecord, moment_of, unnamed
from qmpsnap.model.record_file import to_json
from qmpsnap.model.step import Step
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.commands.state import snapshot_load
from tests.each import each
from tests.model.records import (
    CHECKPOINT,
    COMMIT,
    MIRROR,
    REVERTED,
    SNAPSHOT,
    STATE,
    TIME,
    committing,
    mirroring,
    overlaying,
    stages,
    streaming,
)


def test_moment_of_names_what_each_overlay_covers():
    assert moment_of(replace(SNAPSHOT, directory="/r")) == MomentRecord(
        id="00000001",
        name="before-upgrade",
        created="2024-05-01T12:00:00+00:00",
        overlays={"vda": "/d/o", "vdb": "/d/p"},
        covered={"vda": "/d/a", "vdb": "/d/b"},
        chains={"vda": ("/d/a", "/d/base"), "vdb": ("/d/b",)},
        directory="/r",
    )


def test_file_name_tells_kind_name_and_id():
    names = [COMMIT.file_name, moment_of(SNAPSHOT).file_name]
    assert names == ["intent-0a1b2c3d.json", "moment-before-upgrade-00000001.8vYQMmr-PAaIj5wB.json"]


def test_started_counts_from_1970_whatever_the_zone():
    assert replace(COMMIT, created="1970-01-01T02:00:01+02:00").started == 1.0


def test_records_cannot_be_changed_through_what_they_were_made_of():
    prepared = {"vda": "/d/o"}
    record = replace(SNAPSHOT, prepared=prepared)
    prepared["vda"] = "/etc/passwd"
    assert record.prepared == {"vda": "/d/o"}
    with pytest.raises(TypeError):
        record.prepared["vda"] = "/etc/passwd"  # type: ignore[index]


def test_moment_of_a_checkpoint_keeps_its_state_and_not_how_the_guest_was_found():
    moment = moment_of(CHECKPOINT)
    assert moment.state == CHECKPOINT.state
    assert "origin" not in json.loads(to_json(moment))


def test_began_names_every_overlay_of_a_disk_the_oldest_first():
    assert REVERTED.began("vda") == ("/d/o", "/d/r1", "/d/r3")
    assert REVERTED.began("vdb") == ("/d/p", "/d/r2")
    assert REVERTED.began("vdz") == ()


def test_kept_state_is_called_otherwise_until_it_is_whole():
    assert REVERTED.state is not None
    assert REVERTED.state.partial == "/d/m.vmstate.qcow2.partial"


def test_moment_of_takes_the_formats_of_its_chains():
    intent = replace(SNAPSHOT, formats=dict.fromkeys(SNAPSHOT.overlays, ("qcow2", "raw")))
    assert dict(moment_of(intent).formats) == dict(intent.formats)


ID = "qmpsnap-x-keep-0a1b2c3d"
LAYERS = ("/s2", "/s1", "/mid", "/base")


@each(
    ("start", "disk", "target", "written"),
    [
        (committing(ID, base="/base"), "vda", "", "/base"),
        (committing(ID, above="/s2", base="/base"), "vda", "", "/base"),
        (committing(ID, above="/s2", base="nbd://host/x"), "vda", "", ""),
        (streaming(ID, above="/s2", base=None), "vda", "", "/s2"),
        (streaming(ID, above="/s1", base="/base"), "vda", "", "/s1"),
        (mirroring(ID, "/copy"), "vda", "/copy", "/copy"),
        (snapshot_load(ID, "c1", (("", "n"),), "n"), "", "", ""),
    ],
)
def test_record_knows_on_what_its_job_works(start, disk, target, written):
    finish = finish_record("/r", (ID,))
    record = IntentRecord(ID, "x", TIME, {"vda": LAYERS}, stages=stages(start, tidy=(finish,)))
    assert (record.disk, record.target, record.written) == (disk, target, written)
    assert not record.permanent


def test_record_of_a_commit_that_keeps_its_overlay_stays_and_fills_nothing_that_could_be_read():
    other = finish_record("/r", ("another",))
    start = committing(ID, base="/base")
    record = IntentRecord(ID, "x", TIME, {"vda": LAYERS}, stages=stages(start, tidy=(other,)))
    assert record.permanent
    assert (record.top, record.written) == ("/s2", "")


@each(
    ("record", "made", "overlays", "disk"),
    [
        (SNAPSHOT, ("/d/o", "/d/p"), {"vda": "/d/o", "vdb": "/d/p"}, ""),
        (MIRROR, ("/d/copy",), {}, "vda"),
        (COMMIT, (), {}, "vda"),
        (CHECKPOINT, ("/d/o", "/d/p", f"{STATE.file}.partial"), {"vda": "/d/o", "vdb": "/d/p"}, ""),
        (replace(SNAPSHOT, stages=(), prepared={"vda": "/d/r"}), (), {"vda": "/d/r"}, ""),
    ],
)
def test_record_knows_what_its_steps_make_and_put_on(record, made, overlays, disk):
    assert (record.made, record.overlays, record.disk) == (made, overlays, disk)


def test_record_keeps_of_a_step_what_is_read_back_and_not_how_it_is_taken_back():
    listed = Step(on="host", command="finish-record", arguments={"directory": "/r", "ids": ["a"]})
    (step,) = IntentRecord(ID, "x", TIME, stages=stages(listed)).steps
    assert step == finish_record("/r", ("a",))
    (make, put) = replace(SNAPSHOT, stages=stages(*overlaying({"vda": "/o"}, {"vda": "/b"}))).steps
    assert (make.undo, put.detail) == ((), {})
    with pytest.raises(TypeError):
        make.arguments["file"] = "/etc/passwd"  # type: ignore[index]


def test_the_mark_of_a_layer_that_leads_there_does_so_too():
    plain = moment_of(SNAPSHOT)
    overlay, covered, below = (
        replace(plain, marks={file: f"{'0' * 32}-7"}).file_name for file in ("/d/o", "/d/a", "/d/base")
    )
    assert overlay == covered != plain.file_name == below


def test_a_layer_is_told_by_its_name_and_its_mark():
    record = replace(moment_of(SNAPSHOT), marks={"/d/o": f"{'0' * 32}-7"})
    assert record.marked(("/d/o", "/d/a")) == {"/d/o", "/d/a", "0" * 32}


def test_unnamed_files_are_those_that_no_record_names():
    assert unnamed(("/d/o", "/d/base", "/d/z", "nbd://x", "/d/z"), (moment_of(SNAPSHOT), COMMIT)) == ("/d/z",)
