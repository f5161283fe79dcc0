import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qmpsnap.model.record import moment_of
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.plan.commands.files import create_file
from tests.each import each
from tests.model.records import CHECKPOINT, COMMIT, LINK, MIRROR, REVERTED, SNAPSHOT, mirroring, stages


@each("record", [COMMIT, MIRROR, SNAPSHOT, moment_of(SNAPSHOT), CHECKPOINT, LINK, REVERTED])
def test_from_json_reads_what_to_json_wrote(record):
    assert from_json(to_json(record)) == record


def test_from_json_says_where_the_record_lies():
    assert from_json(to_json(COMMIT), directory="/d/base.qmpsnap").directory == "/d/base.qmpsnap"


def test_to_json_keeps_names_that_are_no_utf_8():
    made = create_file("/d/\udcff", "/d/base")
    record = replace(MIRROR, stages=stages(made, mirroring(MIRROR.id, "/d/\udcff")))
    assert to_json(record).isascii()
    assert from_json(to_json(record)) == record


def test_moment_comes_back_with_what_is_lost_and_without_where_none_was_noted():
    moment = replace(moment_of(SNAPSHOT), lost=("vda",), deleted=True)
    assert from_json(to_json(moment)) == replace(moment, directory="")
    old = json.loads(to_json(moment))
    del old["lost"]
    assert from_json(json.dumps(old)) == replace(moment, directory="", lost=())


@each(
    ("change", "reason"),
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version None"),
        ({"kind": "other"}, "Invalid value 'other' - at `\\$.kind`"),
        ({"id": "../../x"}, "is no id"),
        ({"id": "x/../y"}, "is no id"),
        ({"id": 7}, "Expected `str`, got `int` - at `\\$.id`"),
        ({"op": 7}, "Expected `str`, got `int` - at `\\$.op`"),
        ({"stages": [{"title": "x"}]}, "missing required field `steps` - at `\\$.stages"),
        ({"stages": [{"title": "x", "steps": [{"on": "me"}]}]}, "Invalid enum value 'me' - at `\\$.stages"),
        ({"name": "../x"}, "is not a valid snapshot name"),
        ({"prepared": {"vda": "o"}}, "Expected absolute path - at `\\$.prepared"),
        ({"prepared": {"vda": "/a\0b"}}, "Expected absolute path - at `\\$.prepared"),
        ({"prepared": []}, "Expected `object`, got `array` - at `\\$.prepared`"),
        ({"moves": "vda"}, "Expected `array`, got `str` - at `\\$.moves`"),
        ({"chains": {"vda": [1]}}, "Expected `str`, got `int` - at `\\$.chains"),
        ({"created": None}, "Expected `str`, got `null` - at `\\$.created`"),
        ({"created": "yesterday"}, "Invalid isoformat string"),
        ({"created": "2024-05-01T12:00:00"}, "not a time since 1970 with its zone"),
        ({"created": "0001-01-01T00:00:00+00:00"}, "not a time since 1970 with its zone"),
        ({"after": {"vda": [1]}}, "Expected `str`, got `int` - at `\\$.after"),
        ({"memory": "a\0"}, "Expected text without NUL - at `\\$.memory`"),
    ],
)
def test_from_json_says_what_is_wrong_when_a_field_is(change, reason):
    body = json.loads(to_json(SNAPSHOT)) | change
    with pytest.raises(ValueError, match=reason):
        from_json(json.dumps(body))


KEPT = json.loads(to_json(CHECKPOINT))["state"]
ORIGIN = json.loads(to_json(CHECKPOINT))["origin"]


@each(
    ("change", "reason"),
    [
        ({"state": 7}, "Expected `object \\| null`, got `int` - at `\\$.state`"),
        ({"state": {**KEPT, "mode": "other"}}, "Invalid enum value 'other' - at `\\$.state.mode`"),
        ({"state": {**KEPT, "file": "m"}}, "Expected absolute path - at `\\$.state.file`"),
        ({"state": {**KEPT, "tag": None}}, "Expected `str`, got `null` - at `\\$.state.tag`"),
        ({"state": {**KEPT, "running": 1}}, "Expected `bool`, got `int` - at `\\$.state.running`"),
        (
            {"state": {**KEPT, "fingerprint": None}},
            "got `null` - at `\\$.state.fingerprint`",
        ),
        (
            {"state": {**KEPT, "fingerprint": {}}},
            "field `machine` - at `\\$.state.fingerprint`",
        ),
        ({"origin": []}, "Expected `object \\| null`, got `array` - at `\\$.origin`"),
        ({"origin": {**ORIGIN, "running": None}}, "Expected `bool`, got `null` - at `\\$.origin.running`"),
        ({"origin": {**ORIGIN, "process": 7}}, "Expected `str`, got `int` - at `\\$.origin.process`"),
        ({"origin": None}, "an operation on the guest without its 'origin'"),
    ],
)
def test_from_json_says_what_is_wrong_with_a_checkpoint(change, reason):
    body = json.loads(to_json(CHECKPOINT)) | change
    with pytest.raises(ValueError, match=reason):
        from_json(json.dumps(body))


@each(
    ("branches", "reason"),
    [
        (7, "Expected `array`, got `int` - at `\\$.branches`"),
        ([7], "Expected `object`, got `int`"),
        ([{"vda": "r"}], "Expected absolute path"),
    ],
)
def test_from_json_says_what_is_wrong_with_a_branch(branches, reason):
    body = json.loads(to_json(REVERTED)) | {"branches": branches}
    with pytest.raises(ValueError, match=reason):
        from_json(json.dumps(body))


def test_from_json_reads_moments_of_before_there_were_branches_and_states():
    body = json.loads(to_json(moment_of(SNAPSHOT)))
    old = {key: value for key, value in body.items() if key not in {"chains", "branches", "state"}}
    assert from_json(json.dumps(old)) == replace(moment_of(SNAPSHOT), chains={})


@each("text", ["", "[]", "7", "[" * 100_000, '{"version":1}', "{"])
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
    with pytest.raises(ValueError, match=r"at `\$.state.token`"):
        from_json(json.dumps(body))


def test_an_unfinished_file_carries_the_token_of_its_operation():
    assert CHECKPOINT.state is not None
    state = replace(CHECKPOINT.state, token="0000000a")
    assert state.partial == f"{state.file}.0000000a.partial"
    text = to_json(replace(CHECKPOINT, state=state)).replace(CHECKPOINT.state.partial, state.partial)
    assert from_json(text).state == state


@each("field", list(json.loads(to_json(CHECKPOINT))))
def test_from_json_refuses_an_operation_of_which_a_field_is_missing(field):
    body = json.loads(to_json(CHECKPOINT))
    del body[field]
    with pytest.raises(ValueError, match=field):
        from_json(json.dumps(body))


@each("record", [COMMIT, moment_of(SNAPSHOT)])
def test_to_json_leaves_out_where_the_record_lies_and_from_json_believes_no_such_word(record):
    body = json.loads(to_json(replace(record, directory="/d/x.qmpsnap")))
    assert not {"directory", "live"} & body.keys()
    assert from_json(json.dumps(body | {"directory": 7, "live": 7})) == record
