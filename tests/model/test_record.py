import json

import pytest
from msgspec.structs import replace

from qmpsnap.model.record import IntentRecord, MomentRecord, moment_of
from qmpsnap.model.record_file import to_json
from tests.each import each
from tests.model.records import CHECKPOINT, COMMIT, REVERTED, SNAPSHOT


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
    overlays = {"vda": "/d/o"}
    record = replace(SNAPSHOT, overlays=overlays)
    overlays["vda"] = "/etc/passwd"
    assert record.overlays == {"vda": "/d/o"}
    with pytest.raises(TypeError):
        record.overlays["vda"] = "/etc/passwd"  # type: ignore[index]


def test_moment_of_a_checkpoint_keeps_its_state_and_not_how_qemu_was_set():
    moment = moment_of(CHECKPOINT)
    assert moment.state == CHECKPOINT.state
    assert "was" not in json.loads(to_json(moment))


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


@each(
    ("op", "before", "after", "written"),
    [
        ("commit", ("/s2", "/s1", "/base"), ("/base",), "/base"),
        ("commit", ("/s2", "/s1", "/base"), ("/s2", "/base"), "/base"),
        ("stream", ("/s2", "/s1", "/base"), ("/s2",), "/s2"),
        ("stream", ("/s2", "/s1", "/mid", "/base"), ("/s2", "/s1", "/base"), "/s1"),
        ("mirror", ("/s2", "/base"), ("/copy",), "/copy"),
        ("commit", ("/s2", "/base"), ("/s2", "/base"), ""),
        ("snapshot", ("/s2",), (), ""),
    ],
)
def test_written_is_the_file_that_a_job_fills(op, before, after, written):
    record = IntentRecord(
        id="0a1b2c3d",
        op=op,
        created="2024-05-01T12:00:00+00:00",
        chains={"vda": before},
        after={"vda": after},
        target="/copy" if op == "mirror" else "",
        disk="vda",
    )
    assert record.written == written
