"""A record that came with a bundle moves nothing that is not of its own chain: it is no record then."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord, Member, MomentRecord, Origin, moment_of
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.model.record_rules import is_plain
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.commands.block import blockdev_del, set_drive
from qmpsnap.plan.commands.files import (
    Proof,
    create_file,
    create_memory,
    create_store,
    remove_file,
    reserve_memory,
    retire_file,
    seal_memory,
    seal_store,
)
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.migration import set_capabilities, set_parameters
from qmpsnap.plan.commands.records import (
    finish_record,
    keep_branch,
    keep_continued,
    keep_moment,
    keep_place,
    keep_store,
    link_records,
)
from qmpsnap.plan.commands.state import system_reset
from tests.each import each
from tests.model.records import TIME, committing, mirroring, overlaying, root_of, stages, streaming
from tests.run.operations import CASES, machine, plan_of

if TYPE_CHECKING:
    from collections.abc import Mapping

VICTIM, PLACE = "/etc/shadow", "/d/base.qmpsnap"
STATE = KeptState("stop", "/d/m", "", True, Fingerprint("pc", 7, ("cpu",), {}, {}), "0a1b2c3d")
JOB, COPYING = "qmpsnap-commit-keep-0a1b2c3d", "qmpsnap-mirror-pivot-0a1b2c3d"
TAKING = "qmpsnap-checkpoint-keep-0a1b2c3d"
COMMIT = IntentRecord(
    id=JOB,
    op="commit",
    created=TIME,
    chains={"vda": ("/d/s2", "/d/s1", "/d/base")},
    after={"vda": ("/d/s2", "/d/base")},
    stages=stages(
        committing(JOB, above="/d/s2", base="/d/base"),
        await_job(JOB, "concluded"),
        tidy=(
            retire_file("/d/s1", "rename", "/d/s1.invalid", Proof("qcow2", "/d/base")),
            keep_place(PLACE, "m", "vda", ("/d/s1",), "/d/base"),
            finish_record(PLACE, (JOB,)),
        ),
    ),
    folded=("/d/s1",),
    invalid=("/d/base",),
)
NO_FILE = replace(  # whose base is reached by the network, and is no file
    COMMIT,
    chains={"vda": ("/d/s2", "/d/s1")},
    after={"vda": ("/d/s2",)},
    invalid=(),
    stages=stages(
        committing(JOB, above="/d/s2", base="nbd://host/x"),
        tidy=(keep_place(PLACE, "m", "vda", ("/d/s1",), "nbd://host/x"),),
    ),
)
MIRROR = IntentRecord(
    id=COPYING,
    op="mirror",
    created=TIME,
    chains={"vda": ("/d/base",)},
    after={"vda": ("/d/copy",)},
    stages=stages(
        create_file("/d/copy", "/d/base"),
        mirroring(COPYING, "/d/copy"),
        tidy=(
            blockdev_del("qmpsnap-a-00000000"),
            keep_continued(PLACE, "m", "vda", "/d/copy"),
            link_records("/d/copy.qmpsnap", PLACE),
        ),
    ),
)
MAKING = "qmpsnap-store-keep-0a1b2c3d"
MADE = replace(STATE, mode="in-place", file="/d/m.vmstate.qcow2", tag="qmpsnap-0a1b2c3d")
STORE = IntentRecord(
    id=MAKING,
    op="store",
    created=TIME,
    chains={"vda": ("/d/o", "/d/base")},
    after={"vda": ("/d/o", "/d/base")},
    stages=stages(
        create_store(MADE.partial, "/d/base"),
        seal_store(MADE.partial, MADE.file),
        tidy=(keep_store(PLACE, "m", by=MAKING, instead_of="/d/m"), finish_record(PLACE, (MAKING,))),
    ),
    name="c1",
    state=MADE,
    origin=Origin(False, "1-2"),
)
OVERLAYING = overlaying({"vda": "/d/o"}, {"vda": "/d/base"})
SEALING = seal_memory(
    STATE.partial, STATE.file, id=TAKING, name="c1", running=True, fingerprint=STATE.fingerprint
)
SETTING = set_parameters({"max-bandwidth": 1}, {"max-bandwidth": 2})
CHECKPOINT = IntentRecord(
    id=TAKING,
    op="checkpoint",
    created=TIME,
    chains={"vda": ("/d/base",)},
    after={"vda": ("/d/o", "/d/base")},
    stages=stages(
        *OVERLAYING,
        create_memory(STATE.partial),
        reserve_memory(STATE.partial, at_most_bytes=1 << 20, process="7.8"),
        set_capabilities({"events": True}, {"events": False}),
        SETTING,
        SEALING,
        tidy=(keep_moment(PLACE, TAKING, "c1"),),
    ),
    name="c1",
    state=STATE,
    origin=Origin(True, "1-2"),
    formats={"vda": ("raw",)},
)


def set_root(file: str, disk: str = "vda") -> Step:
    """What gives a disk another root."""
    new, old = root_of(disk, file).root, root_of(disk, "/d/s1").root
    return set_drive(new, "/machine/vda", old, closes=False)


REVERT = IntentRecord(
    id="qmpsnap-revert-keep-0a1b2c3d",
    op="revert",
    created=TIME,
    chains={"vda": ("/d/s1", "/d/base")},
    after={"vda": ("/d/r", "/d/base")},
    stages=stages(
        set_root("/d/r"),
        system_reset(),
        tidy=(keep_branch(PLACE, "m", {"vda": "/d/r"}),),
    ),
    name="c1",
    origin=Origin(True, "1-2"),
)
MOVED = replace(REVERT, stages=REVERT.stages[:1])
MOMENT = moment_of(CHECKPOINT)


@each("record", [COMMIT, NO_FILE, MIRROR, CHECKPOINT, STORE, REVERT, MOMENT])
def test_a_record_of_ours_is_one(record: IntentRecord | MomentRecord) -> None:
    assert from_json(to_json(record)) == record


def with_step(record: IntentRecord, step: Step) -> IntentRecord:
    """The record, with one step more."""
    return replace(record, stages=(*record.stages, Stage("more", (step,), tidy=True)))


@each(
    ("record", "step", "says"),
    [
        (COMMIT, retire_file(VICTIM, "remove", ""), "'retire-file' contains '/etc/shadow'"),
        (COMMIT, retire_file("/d/s1", "rename", VICTIM), "is not a name for a folded file"),
        (COMMIT, retire_file("/d/s1", "rename", "/etc/cron.d/s1.invalid"), "is not a name for a folded file"),
        (COMMIT, retire_file("/d/s1", "rename", ""), "without a new name"),
        (COMMIT, retire_file("/d/s1", "remove", "/d/s1.invalid"), "has one without need"),
        (COMMIT, retire_file("/d/s1", "shred", ""), "Invalid enum value 'shred'"),  # type: ignore[arg-type]
        (COMMIT, create_file(VICTIM, ""), "'made' contains '/etc/shadow'"),
        (COMMIT, remove_file(VICTIM), "'remove-file' is not an action of any operation"),
        (
            COMMIT,
            Step(on="host", command="run", arguments={"argv": ["sh"]}),
            "'run' is not an action of any operation",
        ),
        (COMMIT, Step(on="qmp", command="quit"), "'quit' is not a step of any operation"),
        (COMMIT, Step(on="wait", command="wait"), "'wait' is not a step of any operation"),
        (COMMIT, Step(on="host", command="keep-lost"), "missing required field"),
        (
            COMMIT,
            Step(on="host", command="keep-link", arguments={"directory": "/d", "id": "m", "x": 1}),
            "unknown field `x`",
        ),
        (COMMIT, keep_place(PLACE, "m", "vda", (VICTIM,)), "'keep-place' contains '/etc/shadow'"),
        (COMMIT, keep_place(PLACE, "m", "vda", (), VICTIM), "'keep-place' contains '/etc/shadow'"),
        (COMMIT, keep_continued(PLACE, "m", "vda", VICTIM), "'keep-continued' contains '/etc/shadow'"),
        (COMMIT, keep_branch(PLACE, "m", {"vda": VICTIM}), "'keep-branch' names other files than 'overlays'"),
        (COMMIT, job_dismiss("another"), "'job-dismiss' is on the job 'another'"),
        (COMMIT, streaming(JOB, above="/x", base=None, disk="vdb"), "'disk' contains 'vdb'"),
        (MIRROR, mirroring(COPYING, "/d/copy", disk="vdb"), "'root' contains 'vdb'"),
        (MIRROR, Step(on="qmp", command="blockdev-del", arguments={"id": "x"}), "missing required field"),
        (CHECKPOINT, seal_store(STATE.partial, VICTIM), "'seal-store' names other files than 'state'"),
        (CHECKPOINT, seal_store(VICTIM, STATE.file), "'seal-store' names other files than 'state'"),
        (STORE, keep_store(PLACE, "m", by=TAKING, instead_of="/d/m"), "'keep-store' is of another operation"),
        (CHECKPOINT, keep_store(PLACE, "m", by=TAKING, instead_of="/d/n"), "or one without a store"),
        (STORE, keep_store(PLACE, "m", by=MAKING, instead_of=VICTIM), "which is not beside its store"),
        (STORE, keep_store(PLACE, "m", by=MAKING, instead_of=MADE.file), "which is not beside its store"),
        (
            CHECKPOINT,
            set_parameters({"tls-creds": "x"}, {}),
            "'parameters' contains 'tls-creds', which does not belong",
        ),
        (CHECKPOINT, Step(on="qmp", command="migrate-set-capabilities"), "missing required field"),
        (MOVED, set_root("/d/other"), "moves 'vda' to '/d/other', unlike 'after'"),
        (REVERT, set_root(VICTIM, "vdb"), "'overlays' contains 'vdb'"),
    ],
)
def test_a_record_with_a_step_that_is_not_its_own_is_none(
    record: IntentRecord, step: Step, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        from_json(to_json(with_step(record, step)))


@each(
    ("record", "changes", "says"),
    [
        (COMMIT, {"folded": (VICTIM,)}, "'folded' contains '/etc/shadow'"),
        (COMMIT, {"folded": ("/d/base",)}, "'folded' is not the difference"),
        (COMMIT, {"folded": ("/d/s1", "/d/s2")}, "'folded' is not the difference"),
        (
            COMMIT,
            {"stages": COMMIT.stages[1:]},
            "the files in 'folded' are not consecutive in the chain of ''",
        ),
        (
            COMMIT,
            {"folded": ("/d/s2", "/d/base"), "after": {"vda": ("/d/s1",)}, "stages": COMMIT.stages[:1]},
            "the files in 'folded' are not consecutive",
        ),
        (COMMIT, {"id": COPYING}, f"is on the job '{JOB}'"),
        (COMMIT, {"moves": ("vdb",)}, "'moves' contains 'vdb'"),
        (COMMIT, {"after": {"vdb": ()}, "folded": ()}, "'after' contains 'vdb'"),
        (
            MIRROR,
            {"stages": stages(mirroring(COPYING, "/d/x\rcopy"))},
            "not an absolute path without control",
        ),
        (CHECKPOINT, {"chains": {"vdb": ("/d/base",)}}, "'overlays' contains 'vda'"),
        (CHECKPOINT, {"chains": {"vda": ()}}, "'overlays' contains 'vda'"),
        (
            CHECKPOINT,
            {"stages": stages(*overlaying({"vda": "/d/base"}, {"vda": "/d/base"}))},
            "a layer that existed before",
        ),
        (
            CHECKPOINT,
            {"stages": stages(*overlaying({"vda": "/d/o\nqmpsnap"}, {"vda": "/d/base"}))},
            "not an absolute path without control",
        ),
        (CHECKPOINT, {"prepared": {"vdb": "/d/o"}}, "'overlays' contains 'vdb'"),
        (
            CHECKPOINT,
            {"state": replace(STATE, file="/d/\x1b[2Jm"), "stages": ()},
            "not an absolute path without control",
        ),
        (CHECKPOINT, {"state": None}, "'made' contains '/d/m.0a1b2c3d.partial'"),
        (CHECKPOINT, {"origin": None}, "an operation on the guest without its 'origin'"),
        (REVERT, {"origin": None}, "an operation on the guest without its 'origin'"),
        (REVERT, {"prepared": {"vda": "/d/r"}}, "'prepared' has overlays for another QEMU"),
        (MOMENT, {"covered": {"vda": VICTIM}}, "but its chain begins with '/d/base'"),
        (MOMENT, {"covered": {}}, "'overlays' contains 'vda'"),
        (MOMENT, {"branches": ({"vdb": "/d/x"},)}, "'overlays' contains 'vdb'"),
        (MOMENT, {"branches": ({"vda": "/d/base"},)}, "a layer that existed before"),
        (MOMENT, {"formats": {"vda": ("raw", "raw")}}, "'formats' of 'vda'"),
        (MOMENT, {"covered": {"vda": "/d/\x9bbase"}}, "not an absolute path without control"),
    ],
)
def test_a_record_that_names_what_is_not_its_own_is_none(
    record: IntentRecord | MomentRecord, changes: Mapping[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        from_json(to_json(replace(record, **changes)))


@each("case", CASES)
async def test_every_record_of_our_plans_is_one(case: str) -> None:
    plan = await plan_of(case, machine(case))
    if plan.record is not None:
        assert from_json(to_json(plan.record)) == plan.record


def test_a_state_whose_tag_is_not_of_its_token_is_none() -> None:
    """Else `delete` would remove any image that has an internal snapshot of the record's choice."""
    body = json.loads(to_json(MOMENT))
    body["state"] |= {"mode": "in-place", "tag": "before-upgrade"}
    with pytest.raises(ValueError, match="'tag' is 'before-upgrade', which is not a tag of qmpsnap's"):
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


@each("mark", ["", "ab", "0" * 32, f"{'0' * 31}-7", f"{'0' * 33}-7", f"{'A' * 32}-7", f"{'0' * 32}-"])
def test_a_mark_is_thirty_two_hex_digits_and_an_inode(mark: str) -> None:
    body = json.loads(to_json(MOMENT))
    body["marks"] = {"/d/o": mark}
    with pytest.raises(ValueError, match=r"'marks' contains '.*', which is not a mark"):
        from_json(json.dumps(body))


@each(
    "stamp",
    ["", "1-2", "1-2-", "1-2-0123456", "1-2-0123456z", "-1-2-01234567", "1-2-3-01234567", "१-2-01234567"],
)
def test_a_stamp_is_a_time_an_inode_and_eight_hex_digits(stamp: str) -> None:
    for record in (MOMENT, CHECKPOINT):
        body = json.loads(to_json(record))
        body["stamps"] = {"/d/o": "12-34-01abcdef"}
        from_json(json.dumps(body))
        body["stamps"] = {"/d/o": stamp}
        with pytest.raises(ValueError, match=r"'stamps' contains '.*', which is not a stamp"):
            from_json(json.dumps(body))


def test_record_of_a_group_that_does_not_name_its_own_machine_is_none() -> None:
    intent = replace(CHECKPOINT, member=Member("1f", "web", ("web", "db")))
    assert from_json(to_json(intent)) == intent
    for member in (Member("1f", "web", ("db",)), Member("1f", "w\x1b", ("w\x1b",)), Member("1f", "", ("",))):
        with pytest.raises(ValueError, match="member"):
            from_json(to_json(replace(CHECKPOINT, member=member)))
