from __future__ import annotations

import pytest

from qmpsnap.errors import AmbiguousName, Busy, NotFound, NotInChain, Unsupported
from qmpsnap.model.graph import Disk, Node
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import DropLayers, Stage
from qmpsnap.plan.commands.block import blockdev_del, flush
from qmpsnap.plan.commands.jobs import await_job, block_stream, job_finalize
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.intent import Stream
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import NOW, STATE, job, planned, started, unseen, with_layer

T6 = graph(vda="base <- s1 <- s2 <- s3 <- active*")
LATER = "/images/active.qmpsnap"  # beside what is the base image afterwards
ALL = tuple(f"/images/{name}.qcow2" for name in ("active", "s3", "s2", "s1", "base"))


def test_stream_copies_everything_up_and_leaves_the_others_valid() -> None:
    plan = planned(Stream("vda", on_error="stop", speed=7), T6)
    start = block_stream(
        job=plan.job_id,
        node="vda-active",
        base_node=None,
        backing=None,
        on_error="stop",
        speed=7,
        effect=DropLayers("vda", above=ALL[0], base=None),
    )
    record = IntentRecord(
        id=plan.job_id,
        op="stream",
        created=NOW,
        chains={"vda": ALL},
        after={"vda": ALL[:1]},
        formats={"vda": ("qcow2",) * len(ALL)},
        stages=plan.stages[1:],
        notes=tuple(f"{file} stays valid, but is no longer needed by vda" for file in ALL[1:]),
    )
    assert plan.stages == (
        Stage("write the record", (write_record(LATER, record),)),
        Stage(
            f"stream into {ALL[0]}",
            (
                start,
                await_job(plan.job_id, "pending"),
                flush("vda-active"),
                job_finalize(plan.job_id),
                await_job(plan.job_id, "concluded"),
                flush("vda-active"),
            ),
            verify=True,
        ),
        Stage("clean up", (finish_record(LATER, (plan.job_id,)),), tidy=True),
    )
    assert plan.chains_after == {"vda": ALL[:1]}
    assert (plan.moves, plan.invalid, plan.invalid_if_stopped) == ((), (), ())
    assert plan.notes == tuple(f"{file} stays valid, but is no longer needed by vda" for file in ALL[1:])


def test_stream_sends_the_nodes_and_waits_to_be_finalized() -> None:
    start = planned(Stream("vda", base="s1"), T6).start
    assert start is not None
    assert start.command == "block-stream"
    assert start.arguments == {
        "job-id": start.job_id,
        "device": "vda-active",
        "base-node": "vda-s1",
        "on-error": "report",
        "speed": 0,
        "auto-finalize": False,
    }


@each(
    ("base", "into", "after"),
    [
        ("base", None, ["active", "base"]),
        ("s1", None, ["active", "s1", "base"]),
        ("s2", None, ["active", "s2", "s1", "base"]),
        (None, "s2", ["active", "s3", "s2"]),
        ("base", "s2", ["active", "s3", "s2", "base"]),
    ],
)
def test_stream_removes_the_layers_between(base: str | None, into: str | None, after: list[str]) -> None:
    plan = planned(Stream("vda", base, into), T6)
    assert plan.chains_after == {"vda": tuple(f"/images/{name}.qcow2" for name in after)}


def test_stream_finds_layers_by_the_names_of_their_snapshots() -> None:
    files = FakeFiles(T6)
    files.records.append(MomentRecord("x", "monday", NOW, {"vda": ALL[3]}, directory=STATE))
    assert planned(Stream("vda", base="monday"), T6, files=files).chains_after["vda"] == (ALL[0], *ALL[3:])


def test_stream_keeps_a_relative_name_relative() -> None:
    disk = with_layer(chain("base <- s1 <- s2*"), 0, backing="s1.qcow2")
    start = started(planned(Stream("vda", base="base"), graph(disk)))
    assert start.command == "block-stream"
    assert start.effect == DropLayers("vda", disk.files[0], disk.files[2], "base.qcow2")
    assert start.arguments["backing-file"] == "base.qcow2"


def test_stream_frees_the_nodes_that_we_added() -> None:
    disk = with_layer(chain("base <- s1 <- s2*"), 1, node="qmpsnap-a-00000000")
    assert blockdev_del("qmpsnap-a-00000000") in planned(Stream("vda"), graph(disk)).steps


def test_stream_writes_no_record_when_files_are_not_visible() -> None:
    plan = planned(Stream("vda"), T6, files=unseen(T6))
    assert [step.way for step in plan.steps] == [
        "block-stream", "await-job", "flush", "job-finalize", "await-job", "flush",
    ]  # fmt: skip


@each(("base", "into"), [("active", None), ("s3", "s2"), ("s2", "s2")])
def test_stream_refuses_a_base_that_is_not_below(base: str, into: str | None) -> None:
    with pytest.raises(NotInChain, match="is not below"):
        planned(Stream("vda", base, into), T6)


@each(("base", "into"), [("s3", None), ("s1", "s2"), (None, "base")])
def test_stream_refuses_when_there_is_nothing_between(base: str | None, into: str | None) -> None:
    with pytest.raises(Unsupported, match="nothing to stream"):
        planned(Stream("vda", base, into), T6)


def test_stream_refuses_a_chain_of_one_layer() -> None:
    with pytest.raises(Unsupported, match="is the base image"):
        planned(Stream("vda"), graph(vda="data.raw*"))


def test_stream_refuses_a_layer_that_is_not_in_the_chain() -> None:
    with pytest.raises(NotInChain, match="no layer 's9'"):
        planned(Stream("vda", base="s9"), T6)


def test_stream_refuses_a_layers_name_that_fits_two() -> None:
    disk = with_layer(chain("base <- s1 <- s2*"), 1, file="/other/base.qcow2")
    with pytest.raises(AmbiguousName):
        planned(Stream("vda", base="base.qcow2"), graph(disk))


def test_stream_refuses_an_unknown_disk_and_an_empty_drive() -> None:
    with pytest.raises(NotFound):
        planned(Stream("vdz"), T6)
    with pytest.raises(Unsupported, match="no medium"):
        planned(Stream("cd0"), graph(Disk("cd0")))


def test_stream_refuses_a_disk_that_a_job_holds() -> None:
    held = graph(chain("base <- s1*"), nodes=(Node("#f", "commit_top", "/images/s1.qcow2"),))
    with pytest.raises(Busy) as caught:
        planned(Stream("vda"), held, jobs=(job("c1", "commit"),))
    assert caught.value.hint == (
        "wait for it (qmpsnap job wait c1 --foreign) or stop it (qmpsnap job cancel c1 --foreign)"
    )


@each("command", ["block-stream", "job-cancel"])
def test_stream_refuses_a_qemu_without_its_commands(command: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Stream("vda"), T6, commands=COMMANDS - {command})
    assert caught.value.feature == command
