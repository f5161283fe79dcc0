"""A record that came with a bundle moves nothing that is not of its own chain: it is no record then."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord, MomentRecord, Settings, moment_of
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.model.record_rules import is_plain
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Mapping

VICTIM = "/etc/shadow"
STATE = KeptState("stop", "/d/m", "", True, Fingerprint("pc", 7, ("cpu",), {}, {}), "0a1b2c3d")
COMMIT = IntentRecord(
    id="qmpsnap-commit-keep-0a1b2c3d",
    op="commit",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/s2", "/d/s1", "/d/base")},
    after={"vda": ("/d/s2", "/d/base")},
    folded=("/d/s1",),
    policy="rename",
    renames={"/d/s1": "/d/s1.invalid"},
    invalid=("/d/base",),
    disk="vda",
)
NO_FILE = replace(  # whose base is reached by the network, and is no file
    COMMIT, chains={"vda": ("/d/s2", "/d/s1")}, after={"vda": ("/d/s2",)}, invalid=()
)
MIRROR = IntentRecord(
    id="qmpsnap-mirror-pivot-0a1b2c3d",
    op="mirror",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/base",)},
    after={"vda": ("/d/copy",)},
    made=("/d/copy",),
    target="/d/copy",
)
CHECKPOINT = IntentRecord(
    id="qmpsnap-checkpoint-keep-0a1b2c3d",
    op="checkpoint",
    created="2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/base",)},
    made=("/d/o", STATE.partial),
    overlays={"vda": "/d/o"},
    name="c1",
    state=STATE,
    formats={"vda": ("raw",)},
)
MOMENT = moment_of(CHECKPOINT)


@each("record", [COMMIT, NO_FILE, MIRROR, CHECKPOINT, MOMENT])
def test_a_record_of_ours_is_one(record: IntentRecord | MomentRecord) -> None:
    assert from_json(to_json(record)) == record


@each(
    ("record", "changes", "says"),
    [
        (COMMIT, {"folded": (VICTIM,)}, "'folded' holds '/etc/shadow'"),
        (COMMIT, {"folded": ("/d/base",), "renames": {}}, "'folded' is not what"),
        (COMMIT, {"folded": ("/d/s1", "/d/s2")}, "'folded' is not what"),
        (COMMIT, {"disk": "vdb"}, "'folded' lies not together in the chain of 'vdb'"),
        (COMMIT, {"disk": ""}, "'folded' lies not together"),
        (
            COMMIT,
            {"folded": ("/d/s2", "/d/base"), "after": {"vda": ("/d/s1",)}, "renames": {}},
            "'folded' lies not together",
        ),
        (COMMIT, {"op": "stream"}, "'folded' is not what"),
        (COMMIT, {"renames": {VICTIM: "/d/x"}}, "'renames' holds '/etc/shadow'"),
        (COMMIT, {"renames": {"/d/s1": VICTIM}}, "is none for a folded file"),
        (COMMIT, {"renames": {"/d/s1": "/etc/cron.d/s1.invalid"}}, "is none for a folded file"),
        (COMMIT, {"made": (VICTIM,)}, "'made' holds '/etc/shadow'"),
        (MIRROR, {"made": (VICTIM,)}, "'made' holds '/etc/shadow'"),
        (MIRROR, {"made": ("/d/x\rcopy",), "target": "/d/x\rcopy"}, "no plain path"),
        (CHECKPOINT, {"made": (VICTIM,)}, "'made' holds '/etc/shadow'"),
        (CHECKPOINT, {"overlays": {"vdb": "/d/o"}}, "'overlays' holds 'vdb'"),
        (CHECKPOINT, {"overlays": {"vda": "/d/base"}, "made": ()}, "a layer that was there before"),
        (CHECKPOINT, {"overlays": {"vda": "/d/o\nqmpsnap"}, "made": ()}, "no plain path"),
        (CHECKPOINT, {"state": replace(STATE, file="/d/\x1b[2Jm"), "made": ()}, "no plain path"),
        (CHECKPOINT, {"state": None, "made": ()}, "a checkpoint without its 'state'"),
        (MIRROR, {"op": "save", "target": "", "made": ()}, "a save without its 'state'"),
        (
            CHECKPOINT,
            {"was": Settings(True, parameters={"tls-creds": "x"})},
            "'parameters' holds 'tls-creds', which no operation sets",
        ),
        (MOMENT, {"covered": {"vda": VICTIM}}, "its chain begins '/d/base'"),
        (MOMENT, {"covered": {}}, "'overlays' holds 'vda'"),
        (MOMENT, {"branches": ({"vdb": "/d/x"},)}, "'overlays' holds 'vdb'"),
        (MOMENT, {"branches": ({"vda": "/d/base"},)}, "a layer that was there before"),
        (MOMENT, {"formats": {"vda": ("raw", "raw")}}, "'formats' of 'vda'"),
        (MOMENT, {"covered": {"vda": "/d/\x9bbase"}}, "no plain path"),
    ],
)
def test_a_record_that_names_what_is_not_its_own_is_none(
    record: IntentRecord | MomentRecord, changes: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        from_json(to_json(replace(record, **changes)))


def test_a_state_whose_tag_is_not_of_its_token_is_none() -> None:
    """Else `delete` would remove any image that has an internal snapshot of the record's choice."""
    body = json.loads(to_json(MOMENT))
    body["state"] |= {"mode": "in-place", "tag": "before-upgrade"}
    with pytest.raises(ValueError, match="'tag' is 'before-upgrade', which is none of ours"):
        from_json(json.dumps(body))


@each(
    ("path", "plain"),
    [
        ("/a/b", True),
        ("/a b/ü'\"$(x)", True),
        ("/a/\udcff", True),
        ("a", False),
        ("/a//b", True),  # as QEMU may have been given it
        ("/a/../b", True),
        ("/a\nb", False),
        ("/a\x1b[0m", False),
        ("/a\x7f", False),
        ("/a\x9b", False),
        ("/a\u2028b", False),
    ],
)
def test_is_plain(path: str, plain: bool) -> None:
    assert is_plain(path) is plain
