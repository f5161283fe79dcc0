from __future__ import annotations

import pytest

from qmpsnap.model.record import IntentRecord
from qmpsnap.model.record_file import to_json
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.testing.server import Return
from tests.model.records import stages, streaming

from .conftest import disks

OURS = "qmpsnap-stream-keep-0a1b2c3d"


def job(server, job_id, status="running", *, block=None, **more):
    progress = {"current-progress": 25, "total-progress": 100}
    server.answer(
        "query-jobs", Return([{"id": job_id, "type": "stream", "status": status, **progress, **more}])
    )
    if block is not None:
        facts = {"device": job_id, "type": "stream", "len": 100, "offset": 25, "busy": True, "paused": False}
        facts |= {"speed": 1 << 20, "io-status": "ok", "ready": False, "status": status}
        server.answer("query-block-jobs", Return([facts | block]))


def test_jobs_says_when_there_are_none(machine):
    assert machine("jobs").out == "no jobs\n"


def test_jobs_lists_ours_with_the_ways_to_end_it(machine, server):
    job(server, OURS, block={})
    assert machine("jobs").out.splitlines() == [
        "ID                            TYPE    STATE            DONE    LIMIT  WHOSE",
        f"{OURS}  stream  running  25% of 100 B  1 MiB/s  ours",
        "    started at an unknown time",
        f"    qmpsnap job wait {OURS}",
        f"    or qmpsnap job cancel {OURS}",
    ]


def test_jobs_lists_another_s_without_ways(machine, server):
    job(server, "theirs")
    found = machine("jobs", "--json").json
    assert [(one["id"], one["ours"], one["ways"]) for one in found["jobs"]] == [("theirs", False, [])]
    assert found["jobs"][0]["age_s"] is None
    assert machine("jobs").out.splitlines()[2:] == ["    started at an unknown time"]
    assert found["interrupted"] == []


def test_jobs_says_why_one_is_paused(machine, server):
    job(server, OURS, "paused", block={"paused": True, "io-status": "nospace"})
    out = machine("jobs").out
    assert "paused: no space" in out
    assert f"    qmpsnap job resume {OURS}\n    or qmpsnap job cancel {OURS}\n" in out


def test_jobs_shows_the_error_of_one_that_ended(machine, server):
    job(server, OURS, "concluded", type="commit", error="Input/output error")
    assert "    error: Input/output error\n" in machine("jobs").out


def test_jobs_lists_them_also_when_the_graph_must_not_be_asked_for(machine, server):
    job(server, "theirs", "concluded")
    ended = machine("jobs")
    assert (ended.code, ended.out.splitlines()[1].split()[:3]) == (0, ["theirs", "stream", "concluded"])
    assert ended.err.startswith("warning: cannot search for interrupted operations: stream job 'theirs'")
    assert "\n  next: " in ended.err


@pytest.mark.parametrize(
    ("after", "became"),
    [(1, ["its client is", "  gone"]), (0, ["was stopped", "  half-way"])],
)
def test_jobs_lists_what_a_lost_client_left(monkeypatch, machine, server, tmp_path, after, became):
    monkeypatch.setattr("qmpsnap.cli.jobs._age", lambda created: {"2024-01-01T00:00:00+00:00": 12.3}[created])
    file = str(tmp_path / "base.qcow2")
    disks(server, vda=(file,))
    record = IntentRecord(
        id=OURS,
        op="stream",
        created="2024-01-01T00:00:00+00:00",
        chains={"vda": (file, "/gone")},
        after={"vda": (file if after else "/other",)},
        stages=stages(
            streaming(OURS, above=file, base=None),
            tidy=(finish_record(str(tmp_path / "base.qmpsnap"), (OURS,)),),
        ),
    )
    (tmp_path / "base.qmpsnap").mkdir()
    (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    assert machine("--shared-fs", "yes", "jobs").out.splitlines() == [
        f"{OURS}: stream of vda, started 12 s ago, {became[0]}",
        became[1],
        f"  into {file}",
        f"  to finish it: qmpsnap job wait {OURS}",
    ]


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
def test_job_verb_refuses_another_s_job(machine, server, verb):
    job(server, "theirs")
    ended = machine("--json", "job", verb, "theirs")
    assert (ended.code, ended.json["error"]["type"]) == (3, "ForeignJob")
    assert f"job-{verb}" not in server.commands


@pytest.mark.parametrize("verb", ["pause", "resume", "cancel"])
def test_job_verb_touches_another_s_job_with_foreign(machine, server, verb):
    job(server, "theirs")
    server.answer(f"job-{verb}", Return())
    ended = machine("--json", "job", verb, "theirs", "--foreign")
    assert (ended.code, ended.json["op"], ended.json["changed"]) == (0, f"job-{verb}", False)
    assert server.received[-1]["execute"] == f"job-{verb}"


@pytest.mark.parametrize("dry", [("-n", "--foreign"), ("-n",)])
def test_job_verb_sends_nothing_on_a_dry_run(machine, server, dry):
    job(server, OURS if len(dry) == 1 else "theirs", block={})
    ended = machine("--json", "job", "speed", OURS if len(dry) == 1 else "theirs", "1.5K", *dry)
    (step,) = ended.json["plan"]["steps"]
    assert (step["command"], step["arguments"]["speed"], ended.json["changed"]) == (
        "block-job-set-speed",
        1536,
        False,
    )
    assert "block-job-set-speed" not in server.commands


def test_job_verb_refuses_on_a_dry_run_what_the_run_would_refuse(machine, server):
    job(server, "theirs")
    assert machine("--json", "job", "pause", "theirs", "-n").json["error"]["type"] == "ForeignJob"


def test_job_speed_refuses_what_is_no_speed(machine):
    ended = machine("job", "speed", OURS, "fast")
    assert ended.code == 2
    assert "'fast' is not a speed" in ended.err


def test_job_wait_refuses_an_id_that_nobody_knows(machine):
    ended = machine("--json", "job", "wait", OURS)
    assert (ended.code, ended.json["error"]["type"]) == (3, "NotFound")


@pytest.mark.parametrize("typed", ["qmpsnap-stream", "q", OURS[:-1], OURS])
def test_job_verb_takes_the_beginning_of_an_id(machine, server, typed):
    job(server, OURS)
    server.answer("job-pause", Return())
    assert machine("job", "pause", typed).out == f"{OURS} is paused\n"
    assert server.received[-1]["arguments"] == {"id": OURS}


def test_job_verb_prints_the_whole_id_on_a_dry_run(machine, server):
    job(server, "theirs", block={})
    for words in (("speed", "the", "7"), ("cancel", "the"), ("wait", "the")):
        (step,) = machine("--json", "job", *words, "--foreign", "-n").json["plan"]["steps"]
        assert "theirs" in step["arguments"].values()


def test_job_verb_refuses_the_beginning_of_another_s_id_as_it_refuses_the_whole(machine, server):
    job(server, "theirs")
    assert machine("--json", "job", "cancel", "the").json["error"]["type"] == "ForeignJob"


def test_job_verb_refuses_a_beginning_that_two_ids_have_but_not_a_whole_id(machine, server):
    facts = {"type": "stream", "status": "running", "current-progress": 1, "total-progress": 2}
    server.answer("query-jobs", Return([{"id": name, **facts} for name in ("copy", "copy2")]))
    server.answer("job-pause", Return())
    ended = machine("job", "pause", "co", "--foreign")
    assert ended.code == 3
    assert ended.err.splitlines() == [
        "qmpsnap: refused: 'co' is the beginning of the ids of 2 jobs",
        "  nothing was changed",
        "  next: give more of it: copy, copy2",
    ]
    assert machine("job", "pause", "copy", "--foreign").out == "copy is paused\n"


def test_job_wait_shows_a_picture_of_an_operation_of_ours_alone(machine, server, tmp_path):
    base, active = str(tmp_path / "base.qcow2"), str(tmp_path / "active.qcow2")
    disks(server, vda=(active, base))
    record = IntentRecord(
        id=OURS,
        op="stream",
        created="2024-01-01T00:00:00+00:00",
        chains={"vda": (active, base)},
        after={"vda": (active,)},
        stages=stages(
            streaming(OURS, above=active, base=None),
            tidy=(finish_record(str(tmp_path / "base.qmpsnap"), (OURS,)),),
        ),
    )
    (tmp_path / "base.qmpsnap").mkdir()
    (tmp_path / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    for typed in (OURS, "qmp"):
        drawn = machine("--shared-fs", "yes", "job", "wait", typed, "-n", "--picture", "mermaid")
        assert (drawn.code, drawn.out[:9]) == (0, "flowchart"), drawn
    refused = machine("job", "wait", "theirs", "-n", "--picture", "svg")
    assert (refused.code, "another's job is only waited for" in refused.err) == (2, True)
