from __future__ import annotations

import json
from dataclasses import replace

from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.state import cont, snapshot_load, snapshot_save, stop
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.plan.plan import Plan
from qmpsnap.testing.drawing import graph
from tests.plan.scenes import planned, started, unseen

TWO = graph(vda="base <- s1 <- s2*", vdb="data*")


def test_plan_is_printed_as_json_step_by_step() -> None:
    plan = planned(Commit("vda", "s1", "base"), TWO)
    job_id = plan.job_id
    assert json.loads(json.dumps(plan.to_json())) == {
        "steps": [
            {
                "command": "write-record",
                "arguments": {"directory": "/images/base.qmpsnap", "id": job_id},
                "on": "host",
            },
            {
                "command": "block-commit",
                "arguments": {
                    "job-id": job_id,
                    "device": "vda-s2",
                    "top-node": "vda-s1",
                    "base-node": "vda-base",
                    "on-error": "report",
                    "speed": 0,
                    "auto-finalize": False,
                    "auto-dismiss": False,
                },
                "on": "qmp",
            },
            {"command": "await-job", "arguments": {"id": job_id, "until": "pending"}, "on": "wait"},
            {
                "command": "human-monitor-command",
                "arguments": {"command-line": "qemu-io vda-base flush"},
                "on": "qmp",
            },
            {"command": "job-finalize", "arguments": {"id": job_id}, "on": "qmp"},
            {"command": "await-job", "arguments": {"id": job_id, "until": "concluded"}, "on": "wait"},
            {
                "command": "human-monitor-command",
                "arguments": {"command-line": "qemu-io vda-s2 flush"},
                "on": "qmp",
            },
            {"command": "job-dismiss", "arguments": {"id": job_id}, "on": "qmp"},
            {
                "command": "retire-file",
                "arguments": {
                    "file": "/images/s1.qcow2",
                    "policy": "rename",
                    "to": "/images/s1.qcow2.invalid",
                },
                "on": "host",
            },
            {
                "command": "finish-record",
                "arguments": {"directory": "/images/base.qmpsnap", "ids": [job_id]},
                "on": "host",
            },
        ],
        "before": {"vda": ["/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"]},
        "after": {"vda": ["/images/s2.qcow2", "/images/base.qcow2"]},
        "invalid": ["/images/s1.qcow2.invalid"],
        "deleted": [],
        "notes": [],
    }


def test_plan_is_printed_for_people() -> None:
    plan = planned(Snapshot("n1", ("vdb",)), TWO, files=unseen(TWO))
    probe, take = plan.steps
    assert str(plan) == "\n".join(
        [
            "vdb: [data*]",
            "     becomes [data] <- [data.n1*]",
            "create the overlays:",
            f'  1. -> {{"execute": "blockdev-add", "arguments": {json.dumps(probe.arguments)}}}',
            "take the snapshot:",
            f'  2. -> {{"execute": "transaction", "arguments": {json.dumps(take.arguments)}}}',
            "note: QEMU creates the overlays, mode 644 less its umask: its files are not visible from here",
            "note: there is no writable directory for records: the snapshot's name is not recorded",
        ]
    )


def test_plan_for_people_tells_waits_from_our_own_steps() -> None:
    lines = str(planned(Commit("vda", "s1", "base"), TWO)).splitlines()
    marks = [line.split()[1] for line in lines if line.startswith("  ") and ". " in line[:6]]
    assert marks == ["**", "->", "..", "->", "->", "..", "->", "->", "**", "**"]
    assert lines[-1] == "afterwards invalid: /images/s1.qcow2.invalid"


def test_plan_knows_its_job_and_what_starts_it() -> None:
    plan = planned(Commit("vda"), TWO)
    start = started(plan)
    assert (start.command, start.job_id) == ("block-commit", plan.job_id)
    snapshot = planned(Snapshot("n1"), TWO)
    assert (snapshot.start, snapshot.job_id) == (None, "")


def test_plan_tells_whether_its_job_can_be_left_and_how_it_is_found_then() -> None:
    for intent in (Commit("vda"), Stream("vda"), Mirror("vda", "/c", "pivot")):
        plan = planned(intent, TWO)
        assert (plan.can_be_left, plan.operation_id, plan.halts) == (True, plan.job_id, False)
    snapshot = planned(Snapshot("n1"), TWO)
    assert snapshot.record is not None
    assert (snapshot.can_be_left, snapshot.operation_id) == (False, snapshot.record.id)


def test_plan_tells_whether_a_guest_stands_still_in_its_course() -> None:
    nodes = (("vda", "n"),)
    for step, halts in (
        (stop(), True), (stop(ran=False), False), (cont(), True),
        (snapshot_load("j", "c1", nodes, "n", running=True), True),
        (snapshot_load("j", "c1", nodes, "n"), False),
        (snapshot_save("j", "c1", nodes), False),
    ):  # fmt: skip
        plan = Plan("revert", None, ("vda",), (Stage("go back", (step,)),), TWO, None)
        assert (plan.halts, plan.can_be_left) == (halts, False)
        assert replace(plan, stages=(), resumes=(step,)).halts is halts


def test_stage_groups_the_overlays_that_follow_each_other() -> None:
    record, first, second, take = (
        step for stage in planned(Snapshot("n1"), TWO).stages for step in stage.steps if not stage.tidy
    )
    stage = Stage("all", (record, first, second, take, first))
    assert list(stage.groups) == [(record,), (first, second), (take,), (first,)]


def test_plan_without_a_predicted_graph_expects_what_a_record_said() -> None:
    plan = Plan("commit", None, ("vda",), (), TWO, None, expect={"vda": ("/images/base.qcow2",)})
    assert plan.chains_after == {"vda": ("/images/base.qcow2",)}
    assert "becomes [base*]" in str(plan)


def test_plan_of_overlays_to_start_from_names_them_and_no_chain_that_is_not_changed() -> None:
    plan = Plan("revert-prepare", None, ("vda",), (), TWO, TWO, prepared={"vda": "/images/new.qcow2"})
    before, then = str(plan).splitlines()
    assert (before[:5], then) == ("vda: ", "     stays; afterwards, start from /images/new.qcow2")


def test_the_same_intent_gives_the_same_plan() -> None:
    for intent in (Snapshot("n1"), Stream("vda"), Commit("vda"), Mirror("vda", "/c", "pivot")):
        assert planned(intent, TWO) == planned(intent, TWO)


def test_a_notebook_shows_the_chains_and_the_steps_of_a_plan() -> None:
    plan = planned(Commit("vda", "s1", "base"), TWO)
    ((before, after),) = plan.picture().rows
    assert [box.title for box in before.boxes] == ["s2.qcow2", "s1.qcow2", "base.qcow2"]
    assert [box.title for box in after.boxes] == ["s2.qcow2", "base.qcow2"]
    assert plan._repr_svg_() == plan.picture().render("svg")
    page = plan._repr_html_()
    assert page.startswith('<img alt="before: vda: 3 layers')
    assert "&quot;execute&quot;: &quot;block-commit&quot;" in page


def test_a_picture_of_a_plan_goes_from_its_first_part_to_its_last() -> None:
    first = planned(Commit("vda", "s1", "base"), TWO)
    assert first.after is not None
    both = replace(first, then=(planned(Commit("vda"), first.after),))
    ((before, after),) = both.picture().rows
    assert [box.title for box in before.boxes] == ["s2.qcow2", "s1.qcow2", "base.qcow2"]
    assert [(box.title, box.kind) for box in after.boxes] == [("base.qcow2", "active")]
