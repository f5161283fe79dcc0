import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import (
    IntentRecord,
    KeptState,
    MomentRecord,
    Settings,
    from_json,
    moment_of,
    to_json,
)

COMMIT = IntentRecord(
    id="0a1b2c3d",
    op="commit",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/s1", "/d/base", "nbd://host/x")},
    after={"vda": ("/d/base", "nbd://host/x")},
    folded=("/d/s1",),
    policy="rename",
    renames={"/d/s1": "/d/s1.invalid"},
    invalid=("/d/base",),
    disk="vda",
)
SNAPSHOT = IntentRecord(
    id="00000001",
    op="snapshot",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/a", "/d/base"), "vdb": ("/d/b",)},
    made=("/d/o", "/d/p"),
    overlays={"vda": "/d/o", "vdb": "/d/p"},
    name="before-upgrade",
)
CHECKPOINT = replace(
    SNAPSHOT,
    op="checkpoint",
    state=KeptState(
        "in-place",
        "/d/m.vmstate.qcow2",
        "qmpsnap-00000001",
        True,
        Fingerprint("pc", 7, ("cpu",), {"vda": "virtio-blk-pci"}, {"vda": 64}),
    ),
    was=Settings(True, {"events": False}, {"max-bandwidth": 7, "tls-creds": "x"}, "1-2"),
)
LINK = replace(moment_of(CHECKPOINT), state=None, deleted=True, formats={"vda": ("qcow2", "raw")})
REVERTED = replace(moment_of(CHECKPOINT), branches=({"vda": "/d/r1", "vdb": "/d/r2"}, {"vda": "/d/r3"}))


@pytest.mark.parametrize("record", [COMMIT, SNAPSHOT, moment_of(SNAPSHOT), CHECKPOINT, LINK, REVERTED])
def test_from_json_reads_what_to_json_wrote(record):
    assert from_json(to_json(record)) == record


def test_from_json_says_where_the_record_lies():
    assert from_json(to_json(COMMIT), directory="/d/base.qmpsnap").directory == "/d/base.qmpsnap"


def test_to_json_keeps_names_that_are_no_utf_8():
    record = replace(
        COMMIT, op="mirror", folded=(), policy="", renames={}, target="/d/\udcff", made=("/d/\udcff",)
    )
    assert to_json(record).isascii()
    assert from_json(to_json(record)) == record


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


def test_moment_comes_back_with_what_is_lost_and_without_where_none_was_noted():
    moment = replace(moment_of(SNAPSHOT), lost=("vda",), deleted=True)
    assert from_json(to_json(moment)) == replace(moment, directory="")
    old = json.loads(to_json(moment))
    del old["lost"]
    assert from_json(json.dumps(old)) == replace(moment, directory="", lost=())


def test_file_name_tells_kind_name_and_id():
    names = [COMMIT.file_name, moment_of(SNAPSHOT).file_name]
    assert names == ["intent-0a1b2c3d.json", "moment-before-upgrade-00000001.json"]


def test_started_counts_from_1970_whatever_the_zone():
    assert replace(COMMIT, created="1970-01-01T02:00:01+02:00").started == 1.0


def test_records_cannot_be_changed_through_what_they_were_made_of():
    overlays = {"vda": "/d/o"}
    record = replace(SNAPSHOT, overlays=overlays)
    overlays["vda"] = "/etc/passwd"
    assert record.overlays == {"vda": "/d/o"}
    with pytest.raises(TypeError):
        record.overlays["vda"] = "/etc/passwd"  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"kind": "other"}, "unknown kind 'other'"),
        ({"id": "../../x"}, "is no id"),
        ({"id": "x/../y"}, "is no id"),
        ({"id": 7}, "'id' holds 7"),
        ({"op": "format"}, "'op' is 'format'"),
        ({"policy": "shred"}, "'policy' is 'shred'"),
        ({"name": "../x"}, "is not a valid snapshot name"),
        ({"made": ["etc/passwd"]}, "not an absolute path"),
        ({"made": "/etc/passwd"}, "'made' is no list"),
        ({"made": ["/a\0b"]}, "no text"),
        ({"overlays": {"vda": "o"}}, "not an absolute path"),
        ({"overlays": []}, "'overlays' is no object"),
        ({"renames": {"/a": "b"}}, "not an absolute path"),
        ({"chains": {"vda": [1]}}, "no text"),
        ({"created": None}, "no text"),
        ({"created": "yesterday"}, "Invalid isoformat string"),
        ({"after": {"vda": [1]}}, "no text"),
    ],
)
def test_from_json_says_what_is_wrong_when_a_field_is(change, reason):
    body = json.loads(to_json(SNAPSHOT)) | change
    with pytest.raises(ValueError, match=reason):
        from_json(json.dumps(body))


KEPT = json.loads(to_json(CHECKPOINT))["state"]
WAS = json.loads(to_json(CHECKPOINT))["was"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": 7}, "'state' is no object"),
        ({"state": {**KEPT, "mode": "other"}}, "'mode' is 'other'"),
        ({"state": {**KEPT, "file": "m"}}, "not an absolute path"),
        ({"state": {**KEPT, "tag": None}}, "'tag' holds None"),
        ({"state": {**KEPT, "running": 1}}, "'running' is 1"),
        ({"state": {**KEPT, "fingerprint": None}}, "a fingerprint is no object"),
        ({"state": {**KEPT, "fingerprint": {}}}, "'machine' holds None"),
        ({"was": []}, "'was' is no object"),
        ({"was": {**WAS, "running": None}}, "'running' is None"),
        ({"was": {**WAS, "capabilities": {"events": 1}}}, "'capabilities' is 1"),
        ({"was": {**WAS, "parameters": {"max-bandwidth": True}}}, "parameter 'max-bandwidth' holds True"),
        ({"was": {**WAS, "parameters": {"max-bandwidth": None}}}, "parameter 'max-bandwidth' holds None"),
        ({"was": {**WAS, "process": 7}}, "'process' holds 7"),
    ],
)
def test_from_json_says_what_is_wrong_with_a_checkpoint(change, reason):
    body = json.loads(to_json(CHECKPOINT)) | change
    with pytest.raises(ValueError, match=reason):
        from_json(json.dumps(body))


@pytest.mark.parametrize(
    ("branches", "reason"),
    [(7, "'branches' is no list"), ([7], "is no object"), ([{"vda": "r"}], "not an absolute path")],
)
def test_from_json_says_what_is_wrong_with_a_branch(branches, reason):
    body = json.loads(to_json(REVERTED)) | {"branches": branches}
    with pytest.raises(ValueError, match=reason):
        from_json(json.dumps(body))


def test_from_json_reads_moments_of_before_there_were_branches_and_states():
    body = json.loads(to_json(moment_of(SNAPSHOT)))
    old = {key: value for key, value in body.items() if key not in {"chains", "branches", "state"}}
    assert from_json(json.dumps(old)) == replace(moment_of(SNAPSHOT), chains={})


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


@pytest.mark.parametrize("text", ["", "[]", "7", "[" * 100_000, '{"version":1}', "{"])
def test_from_json_refuses_what_is_no_record(text):
    with pytest.raises(ValueError):  # noqa: PT011  # each has its own reason
        from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(json.loads(to_json(SNAPSHOT)))), JSON)
def test_from_json_gives_a_record_or_a_value_error_when_a_field_is_hostile(key, value):
    body = json.loads(to_json(CHECKPOINT)) | {key: value}
    try:
        record = from_json(json.dumps(body))
    except ValueError:
        return
    assert from_json(to_json(record)) == record


def test_from_json_refuses_a_token_that_is_none():
    body = json.loads(to_json(CHECKPOINT))
    body["state"]["token"] = "../../etc"
    with pytest.raises(ValueError, match="is no token"):
        from_json(json.dumps(body))


def test_an_unfinished_file_carries_the_token_of_its_operation():
    assert CHECKPOINT.state is not None
    state = replace(CHECKPOINT.state, token="0000000a")
    assert state.partial == f"{state.file}.0000000a.partial"
    assert from_json(to_json(replace(CHECKPOINT, state=state))).state == state


def test_moment_of_takes_the_formats_of_its_chains():
    intent = replace(SNAPSHOT, formats=dict.fromkeys(SNAPSHOT.overlays, ("qcow2", "raw")))
    assert dict(moment_of(intent).formats) == dict(intent.formats)
