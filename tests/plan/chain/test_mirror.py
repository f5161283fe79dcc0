from __future__ import annotations

import dataclasses

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    Busy,
    InvalidTarget,
    NotFound,
    Refused,
    TargetExists,
    UnsafeImage,
    Unsupported,
    WouldLose,
)
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk, Filter, InternalSnapshot, Node
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import MoveRoot, Root, Stage
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.files import LuksHeader, create_file
from qmpsnap.plan.commands.jobs import await_job, end_copy, job_complete, job_dismiss, mirror_job
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.intent import Ending, Mirror, Sync
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import NOW, STATE, encrypted, job, planned, started, unseen, with_layer

TWO = graph(vda="base <- s1*")
CHAIN = ("/images/s1.qcow2", "/images/base.qcow2")
COPY = "/copies/vda.qcow2"
BESIDE = "/copies/vda.qmpsnap"


def pivot(sync: Sync = "full", **more: object) -> Mirror:
    return dataclasses.replace(Mirror("vda", COPY, "pivot", sync), **more)  # type: ignore[arg-type]


def finish(**more: object) -> Mirror:
    return dataclasses.replace(Mirror("vda", COPY, "finish"), **more)  # type: ignore[arg-type]


def test_mirror_makes_the_target_copies_and_pivots() -> None:
    plan = planned(pivot(on_error="stop", speed=5), TWO)
    start = started(plan)
    copy = Root("vda", start.arguments["node-name"], COPY, "qcow2", None, ())
    assert start == mirror_job(
        job=plan.job_id,
        root="vda-s1",
        replaces=None,
        copy=copy,
        sync="full",
        opens="absolute-paths",
        on_error="stop",
        speed=5,
    )
    record = IntentRecord(
        id=plan.job_id,
        op="mirror",
        created=NOW,
        chains={"vda": CHAIN},
        after={"vda": (COPY,)},
        formats={"vda": ("qcow2",) * len(CHAIN)},
        stages=(replace(plan.stages[0], steps=plan.stages[0].steps[2:]), *plan.stages[1:]),
        moves=("vda",),
    )
    assert plan.stages == (
        Stage(
            "create the target",
            (write_record(STATE, record), write_record(BESIDE, record), create_file(COPY, CHAIN[0])),
        ),
        Stage(
            f"mirror to {COPY}",
            (
                start,
                await_job(plan.job_id, "ready"),
                job_complete(plan.job_id, MoveRoot(copy)),
                await_job(plan.job_id, "concluded"),
                job_dismiss(plan.job_id),
            ),
            verify=True,
        ),
        Stage(
            "clean up",
            (finish_record(STATE, (plan.job_id,)), finish_record(BESIDE, (plan.job_id,))),
            tidy=True,
        ),
    )
    assert plan.job_id.startswith("qmpsnap-mirror-pivot-")
    assert len(copy.node.encode()) <= 31
    assert start.arguments == {
        "job-id": plan.job_id,
        "device": "vda-s1",
        "target": COPY,
        "format": "qcow2",
        "node-name": copy.node,
        "sync": "full",
        "mode": "absolute-paths",
        "on-source-error": "stop",
        "on-target-error": "stop",
        "speed": 5,
        "auto-dismiss": False,
    }


def test_mirror_that_finishes_ends_the_copy_and_leaves_the_chain() -> None:
    plan = planned(finish(), TWO)
    assert end_copy(plan.job_id) in plan.steps
    assert plan.job_id.startswith("qmpsnap-mirror-copy-")
    assert plan.chains_after == {"vda": CHAIN}
    assert (plan.moves, plan.invalid, plan.invalid_if_stopped) == ((), (), ())


@each(
    ("sync", "after", "backing"),
    [
        ("full", (COPY,), None),
        ("top", (COPY, CHAIN[1]), CHAIN[1]),
        ("none", (COPY, *CHAIN), CHAIN[0]),
    ],
)
def test_mirror_keeps_the_layers_that_it_did_not_copy(
    sync: Sync, after: tuple[str, ...], backing: str | None
) -> None:
    plan = planned(pivot(sync), TWO)
    assert plan.chains_after == {"vda": after}
    assert plan.after is not None
    assert plan.after.disks["vda"].active.backing == backing
    assert plan.record is not None
    assert plan.record.after == {"vda": after}


def test_mirror_takes_the_format_of_the_active_layer_by_default() -> None:
    raw = graph(vda="data.raw*")
    formats = [
        planned(intent, raw).start.arguments["format"]  # type: ignore[union-attr]
        for intent in (finish(), finish(format="qcow2"))
    ]
    assert formats == ["raw", "qcow2"]


def test_mirror_replaces_the_layer_under_a_throttle() -> None:
    disk = replace(chain("base <- s1*"), root="thr", filters=(Filter("thr", "throttle"),))
    start = planned(pivot(), graph(disk)).start
    assert start is not None
    assert (start.arguments["device"], start.arguments["replaces"]) == ("thr", "vda-s1")


def test_mirror_is_refused_under_a_compress_filter() -> None:
    disk = replace(chain("base <- s1*"), root="zip", filters=(Filter("zip", "compress"),))
    for intent in (pivot(), finish()):
        with pytest.raises(Unsupported, match="under the filter 'zip'") as caught:
            planned(intent, graph(disk))
        assert caught.value.hint == "copy it by qmpsnap backup run DIR --disk vda"


def test_mirror_lets_qemu_make_the_target_when_its_files_are_not_visible() -> None:
    plan = planned(pivot(), TWO, files=unseen(TWO))
    probe = plan.steps[0]
    assert probe.way == "probe"
    assert (probe.arguments["filename"], plan.record) == (COPY, None)
    assert plan.notes == (
        "QEMU creates the target, mode 644 less its umask: its files are not visible from here",
    )


def test_mirror_frees_the_nodes_that_we_added_when_it_pivots() -> None:
    owned = graph(with_layer(chain("base <- s1*"), 0, node="qmpsnap-a-00000000"))
    assert blockdev_del("qmpsnap-a-00000000") in planned(pivot(), owned).steps
    assert blockdev_del("qmpsnap-a-00000000") not in planned(finish(), owned).steps


def existing(form: str = "qcow2", **more: object) -> FakeFiles:
    files = FakeFiles(TWO)
    files.put(COPY, format=form, **more)  # type: ignore[arg-type]
    return files


def test_mirror_takes_an_existing_target_when_it_fits() -> None:
    plan = planned(pivot(use_existing=True), TWO, files=existing())
    assert [step.command for step in plan.steps[:3]] == ["write-record", "write-record", "drive-mirror"]
    assert plan.start is not None
    assert plan.start.arguments["mode"] == "existing"
    assert plan.record is not None
    assert plan.record.made == ()  # so nobody removes it
    top = existing(backing="../images/base.qcow2")
    assert planned(pivot("top", use_existing=True), TWO, files=top)
    assert planned(pivot(use_existing=True, format="raw"), TWO, files=existing("raw"))


@each(
    ("intent", "files", "message"),
    [
        (finish(), existing(size_bytes=MIB), "has 1048576 bytes, vda has 67108864"),
        (finish(format="raw"), existing("raw", size_bytes=MIB), "has 1048576 bytes"),
        (finish(), existing("raw"), "is raw, not qcow2"),
        (finish(format="raw"), existing(), "is qcow2, not raw"),
        (finish(), existing(backing="/images/base.qcow2"), "has the backing file '/images/base.qcow2'"),
        (finish(), existing(backing="nbd:host:1"), "has the backing file 'nbd:host:1', not None"),
        (pivot("top"), existing(), "has the backing file None, not '/images/base.qcow2'"),
        (pivot("top"), existing(backing="/images/s1.qcow2"), "not '/images/base.qcow2'"),
        (finish(), FakeFiles(TWO), "is missing"),
    ],
)
def test_mirror_refuses_an_existing_target_that_does_not_fit(
    intent: Mirror, files: FakeFiles, message: str
) -> None:
    with pytest.raises(InvalidTarget, match=message):
        planned(dataclasses.replace(intent, use_existing=True), TWO, files=files)


def test_mirror_refuses_an_existing_target_that_keeps_its_data_elsewhere() -> None:
    files = existing()
    fact = files.facts[COPY]
    assert fact.header is not None
    files.facts[COPY] = replace(fact, header=replace(fact.header, data_file="/etc/passwd"))
    with pytest.raises(UnsafeImage):
        planned(pivot(use_existing=True), TWO, files=files)


def test_mirror_refuses_an_existing_target_with_a_broken_header() -> None:
    files = existing("raw")
    files.facts[COPY] = replace(files.facts[COPY], problem="truncated at byte 7")
    with pytest.raises(InvalidTarget, match="truncated at byte 7"):
        planned(finish(use_existing=True, format="raw"), TWO, files=files)


def test_mirror_refuses_an_existing_target_that_it_cannot_look_at() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(pivot(use_existing=True), TWO, files=unseen(TWO))
    assert caught.value.feature == "use_existing"


def test_mirror_refuses_a_target_that_exists() -> None:
    with pytest.raises(TargetExists) as caught:
        planned(pivot(), TWO, files=existing())
    assert caught.value.file == COPY


@each("use_existing", [True, False])
@each("file", [*CHAIN, "/images/data.qcow2"])
def test_mirror_refuses_a_layer_of_any_disk_as_its_target(file: str, use_existing: bool) -> None:
    both = graph(vda="base <- s1*", vdb="data*")
    with pytest.raises(TargetExists, match="is a layer of") as caught:
        planned(Mirror("vda", file, "pivot", use_existing=use_existing), both)
    assert caught.value.hint == "a copy needs a file of its own"


@each(
    ("where", "message"),
    [
        (DirFact("/copies", exists=False, writable=False), "does not exist"),
        (DirFact("/copies", exists=True, writable=False, problem="permission denied"), "permission denied"),
        (DirFact("/copies", exists=True, writable=True, free_bytes=4096), "no space left in /copies"),
    ],
)
def test_mirror_refuses_a_directory_that_cannot_take_the_target(where: DirFact, message: str) -> None:
    files = FakeFiles(TWO)
    files.directories["/copies"] = where
    with pytest.raises(InvalidTarget, match=message):
        planned(pivot(), TWO, files=files)


@each(
    ("intent", "error"),
    [
        (Mirror("vdz", COPY, "pivot"), NotFound),
        (Mirror("cd0", COPY, "pivot"), Unsupported),
        (Mirror("vda", COPY, "finish", "none"), Unsupported),
        (pivot("none", use_existing=True), Unsupported),
        (pivot("none", format="raw"), Unsupported),
        (pivot("top", format="raw"), Unsupported),
    ],
)
def test_mirror_refuses_what_makes_no_sense(intent: Mirror, error: type[Refused]) -> None:
    with pytest.raises(error):
        planned(intent, graph(*TWO.disks.values(), Disk("cd0")))


def test_mirror_of_the_top_of_one_layer_may_be_raw() -> None:
    assert planned(pivot("top", format="raw"), graph(vda="data*")).chains_after == {"vda": (COPY,)}


@each("ending", ["pivot", "finish"])
def test_mirror_of_a_read_only_disk_cannot_pivot(ending: Ending) -> None:
    disk = graph(replace(chain("data*"), read_only=True))
    intent = Mirror("vda", COPY, ending)
    if ending == "finish":
        assert planned(intent, disk)
    else:
        with pytest.raises(Unsupported, match="is read-only"):
            planned(intent, disk)


@each(
    ("layer", "sync", "lost"),
    [(0, "full", True), (1, "full", True), (0, "top", True), (1, "top", False), (0, "none", False)],
)
def test_mirror_refuses_to_leave_internal_snapshots_behind(layer: int, sync: Sync, lost: bool) -> None:
    disk = graph(with_layer(chain("base <- s1*"), layer, snapshots=(InternalSnapshot("1", "x"),)))
    assert planned(finish(), disk)
    assert planned(pivot(sync, discard_internal=True), disk)
    if lost:
        with pytest.raises(WouldLose):
            planned(pivot(sync), disk)
    else:
        assert planned(pivot(sync), disk)


def test_mirror_refuses_a_disk_that_a_job_holds_or_a_node_covers() -> None:
    held = graph(chain("base <- s1*"), nodes=(Node("#f", "copy-before-write", CHAIN[0]),))
    with pytest.raises(Busy) as caught:
        planned(pivot(), held, jobs=(job("b", "backup"),))
    assert caught.value.job_id == "b"
    covered = graph(chain("base <- s1*"), nodes=(Node("old", "qcow2", "/o", backing=CHAIN[0]),))
    with pytest.raises(Busy, match="node 'old'"):
        planned(pivot(), covered)


@each("command", ["drive-mirror", "job-complete", "job-dismiss", "job-cancel", "block-job-cancel"])
def test_mirror_refuses_a_qemu_without_its_commands(command: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(pivot(), TWO, commands=COMMANDS - {command})
    assert caught.value.feature == command


@each(("sync", "backing"), [("full", None), ("top", "/images/base.qcow2")])
def test_mirror_of_an_encrypted_disk_opens_an_encrypted_copy_and_frees_it_unless_it_pivots(
    sync: Sync, backing: str | None
) -> None:
    of, files = encrypted("base <- s1*")
    plan = planned(finish(sync=sync), of, files=files)
    commands = [step.command for step in plan.steps]
    assert commands == [
        *(
            "write-record",
            "create-overlay" if backing else "create-image",
            "blockdev-add",
            "blockdev-mirror",
            "await-job",
        ),
        *("block-job-cancel", "await-job", "blockdev-del", "finish-record", "job-dismiss"),
    ]
    make, opened, start = plan.steps[1:4]
    node = start.arguments["target"]
    assert (make.arguments.get("backing"), make.detail["luks"]) == (backing, LuksHeader(CHAIN[0], 1, 2))
    assert opened.arguments.get("backing") == ("vda-base" if backing else None)
    assert (opened.arguments["node-name"], plan.steps[7]) == (node, blockdev_del(node))
    assert "blockdev-del" not in [step.command for step in planned(pivot(sync), of, files=files).steps]
    with pytest.raises(Unsupported, match="unencrypted"):
        planned(pivot("none"), of, files=files)


@each(("own", "plain"), [("qcow2", False), ("luks", False), ("luks", True), ("raw", False), ("raw", True)])
def test_mirror_of_an_encrypted_disk_is_qcow2_if_the_caller_does_not_say(own: str, *, plain: bool) -> None:
    of, files = encrypted("base*")
    disk = with_layer(of.disks["vda"], 0, format=own)
    plan = planned(finish(plain=plain), graph(disk), files=files)
    (copy,) = (step.copy for step in plan.steps if step.copy is not None)
    assert (copy.format, copy.secret) == ("qcow2", "" if plain else "sec0")


def test_mirror_of_a_disk_in_another_format_says_which_ones_there_are() -> None:
    vmdk = graph(with_layer(chain("base*"), 0, format="vmdk"))
    with pytest.raises(Unsupported, match="a copy in format 'vmdk'") as caught:
        planned(finish(), vmdk)
    assert caught.value.hint == "use --format qcow2, or raw"
