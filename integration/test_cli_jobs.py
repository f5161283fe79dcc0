"""The command line and jobs: interrupts, detaching, waiting, events, and questions on a terminal."""

from __future__ import annotations

import itertools
import json
import re
import select
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest

from integration.cli import Cli, Terminal, records
from integration.machines import SOON, blockdev, wait_for

pytestmark = pytest.mark.one_qemu

SLOW = ("--speed", "16K")  # a job that ends long after the test


@pytest.fixture
def vda(images, machine):
    """A machine with vda on base <- s1 <- s2, and the command for it."""
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        yield running, Cli(running), made


# -- jobs --------------------------------------------------------------------------------------------


def test_sigterm_undoes_and_exits_130(vda):
    _, cli, made = vda
    process = cli.start("--json", "stream", "vda", *SLOW)
    cli.job()
    process.terminate()
    ended = cli.end(process)
    assert (ended.code, ended.json["error"]["type"]) == (130, "Interrupted")
    assert "stopping" in ended.err
    assert cli("--json", "chain").json["disks"][0]["layers"][0]["file"] == made.active


def test_ctrl_c_without_a_terminal_names_what_a_commit_made_invalid_and_how_to_mend_it(vda):
    running, cli, made = vda
    base = Path(made.files[0])
    untouched = base.stat().st_mtime_ns
    process = cli.start("--json", "commit", "vda", *SLOW)
    cli.job("commit")
    # Before its first write a commit has made nothing invalid, and then there is nothing to mend.
    wait_for(lambda: base.stat().st_mtime_ns != untouched, "the commit's first write")
    process.send_signal(signal.SIGINT)
    error = cli.end(process).json["error"]
    assert (error["type"], error["changed"]) == ("Interrupted", "yes")
    assert made.files[0] in error["invalid"]
    (left,) = cli("--json", "jobs").json["interrupted"]
    assert (left["invalid"], left["ways"]) == (
        error["invalid"],
        [f"qmpsnap commit vda --base {made.files[0]}"],
    )
    marked = [
        layer["file"] for layer in cli("--json", "chain").json["disks"][0]["layers"] if layer["invalid"]
    ]
    assert sorted(marked) == sorted(error["invalid"])
    assert cli(*left["ways"][0].split()[1:]).code == 0
    assert (records(running), cli("jobs").out) == ([], "no jobs\n")


def test_a_second_ctrl_c_leaves_the_job_and_job_wait_ends_it(vda, leftovers):
    running, cli, made = vda
    process = cli.start("commit", "vda", *SLOW)
    job = cli.job("commit")
    running.process.send_signal(signal.SIGSTOP)  # so that it cannot have undone anything
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == (
        f"stopping and rolling back; interrupt again to leave job {job} running\n"
    )
    process.send_signal(signal.SIGINT)
    ended = cli.end(process)
    running.process.send_signal(signal.SIGCONT)
    assert (ended.code, ended.out) == (130, f"{job}\n")
    listed = cli("--json", "jobs").json
    assert [one["id"] for one in (*listed["jobs"], *listed["interrupted"])] == [job]
    if listed["jobs"]:  # else QEMU has dropped the job
        assert f">{job}</text>" in cli("chain", "--format", "svg").out
    cli("job", "speed", job, "0")
    last = cli("--json", "job", "wait", job)
    # QEMU may drop a command that it had not read when its client left, so the job may have gone on.
    assert last.code == 0 or (last.code, last.json["error"]["type"]) == (4, "JobFailed")
    assert made.files[0] in (
        last.json["active"].values() if last.code == 0 else last.json["error"]["invalid"]
    )
    leftovers.allow(*records(running))


def test_jobs_are_listed_slowed_paused_resumed_and_cancelled(vda):
    running, cli, _ = vda
    node = running.roots()["vda"][0]
    job = "qmpsnap-stream-keep-0a1b2c3d"
    running.qmp("block-stream", {"job-id": job, "device": node, "speed": 1024, "auto-finalize": False})
    (listed,) = cli("--json", "jobs").json["jobs"]
    assert (listed["id"], listed["ours"], listed["speed"]) == (job, True, 1024)
    assert cli("job", "speed", job, "2K").out == f"{job}: at most 2 KiB/s\n"
    assert running.qmp("query-block-jobs")[0]["speed"] == 2048
    assert cli("job", "pause", job[:-1]).out == f"{job} is paused\n"
    assert running.qmp("query-block-jobs")[0]["paused"]
    assert cli("job", "resume", job).code == 0
    assert not running.qmp("query-block-jobs")[0]["paused"]
    ended = cli("--json", "job", "cancel", job)
    assert (ended.code, ended.json["op"]) == (0, "stream"), ended
    assert running.qmp("query-jobs") == []


def test_jobs_of_others_need_foreign(vda):
    running, cli, _ = vda
    node = running.roots()["vda"][0]
    running.qmp("block-stream", {"job-id": "theirs", "device": node, "speed": 1024})
    assert cli("--json", "job", "cancel", "theirs").json["error"]["type"] == "ForeignJob"
    assert cli("job", "cancel", "theirs", "--foreign").code == 0
    wait_for(lambda: running.qmp("query-jobs") == [], "its end")


def test_jobs_shows_disk_target_and_age_of_a_live_client_s(images, machine, tmp_path):
    one, other = images("base <- s1", folder="one"), images("base <- s1", folder="other")
    second = str(tmp_path / "second")  # a monitor serves one client
    monitor = ("-qmp", f"unix:{second},server=on,wait=off")
    with machine(*blockdev("vda", one.active), *blockdev("vdb", other.active), *monitor) as running:
        client, cli, target = Cli(running), Cli(running), str(tmp_path / "copy.qcow2")
        cli.environment["QMPSNAP_SOCKET"] = second
        process = client.start("mirror", "vdb", target, "--finish", *SLOW)
        job = client.job("mirror")
        (listed,) = cli("--json", "jobs").json["jobs"]
        assert (listed["disk"], listed["target"]) == ("vdb", target)
        assert 0 <= listed["age_s"] < 60
        assert abs(datetime.fromisoformat(listed["created"]).timestamp() - time.time()) < 60
        assert re.search(r"^    of vdb, started \d+ s ago,\s+into copy.qcow2$", cli("jobs").out, re.MULTILINE)
        assert listed["id"] == job
        process.terminate()
        assert client.end(process).code == 130


def test_job_wait_and_cancel_of_a_job_whose_client_is_at_work_leave_it_the_rest(images, machine, temporary):
    made, second = images("base <- s1 <- s2"), str(temporary / "second")  # a monitor serves one client
    monitor = ("-qmp", f"unix:{second},server=on,wait=off")
    with machine(*blockdev("vda", made.active), *monitor) as running:
        client, cli = Cli(running), Cli(running)
        cli.environment["QMPSNAP_SOCKET"] = second
        process = client.start("--json", "stream", "vda", *SLOW)
        job = client.job("stream")
        assert cli("job", "cancel", job).out == f"{job} is being cancelled\n"
        ended = client.end(process)
        assert (ended.code, ended.json["error"]["type"]) == (4, "JobFailed")
        assert (records(running), cli("jobs").out) == ([], "no jobs\n")
        process = client.start("--json", "stream", "vda", *SLOW)
        job = client.job("stream")
        waiting = cli.start("-v", "job", "wait", job)
        assert any("operation.left_to_another" in line for line in iter(waiting.stderr.readline, ""))
        running.qmp("block-job-set-speed", {"device": job, "speed": 0})
        assert client.end(process).code == 0
        ended = cli.end(waiting)
        assert (ended.code, ended.out) == (0, f"{job} has ended\n"), ended


@pytest.mark.parametrize(
    ("command", "arguments", "target"),
    [
        ("block-stream", {}, "s2"),
        ("block-commit", {}, "base"),
        ("block-commit", {"top": "s1"}, "base"),
        ("drive-mirror", {"target": "copy", "format": "qcow2", "sync": "full"}, "copy"),
        ("drive-backup", {"target": "copy", "format": "qcow2", "sync": "full"}, "copy"),
    ],
)
def test_jobs_shows_disk_and_target_of_a_stranger_s(
    qemu, images, machine, tmp_path, command, arguments, target
):
    """QEMU does not say when the job began. The other disk is on the same base, unless that is written."""
    made = images("base <- s1 <- s2")
    twin = qemu.create(tmp_path / "twin.qcow2", backing=None if target == "base" else made.files[0])
    base, s1, s2 = made.files
    files = {"base": base, "s1": s1, "s2": s2, "copy": str(tmp_path / "copy.qcow2")}
    with machine(*blockdev("twin", twin), *blockdev("vda", made.active)) as running:
        node = running.roots()["vda"][0]
        arguments = {name: files.get(value, value) for name, value in arguments.items()}
        running.qmp(command, {"job-id": "theirs", "device": node, "speed": 1, **arguments})
        (listed,) = Cli(running)("--json", "jobs").json["jobs"]
        assert (listed["disk"], listed["target"]) == ("vda", files[target])
        assert (listed["created"], listed["age_s"], listed["ways"]) == ("", None, [])
        shown = rf"^    of vda,\s+started at an unknown time,\s+into {Path(files[target]).name}$"
        assert re.search(shown, Cli(running)("jobs").out, re.MULTILINE)
        running.qmp("block-job-cancel", {"device": "theirs", "force": True})
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="theirs", status="null")


def test_jobs_shows_disk_target_and_age_of_what_a_lost_client_left(vda, leftovers):
    running, cli, made = vda
    process = cli.start("commit", "vda", *SLOW)
    job = cli.job("commit")
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
    (listed,) = cli("--json", "jobs").json["jobs"]
    assert (listed["id"], listed["disk"], listed["target"]) == (job, "vda", made.files[0])
    assert 0 <= listed["age_s"] < 60
    running.qmp("block-job-cancel", {"device": job, "force": True})
    running.qmp.wait_event("BLOCK_JOB_CANCELLED")
    running.qmp("job-dismiss", {"id": job})
    (left,) = cli("--json", "jobs").json["interrupted"]
    assert (left["id"], left["disk"], left["target"]) == (job, "vda", made.files[0])
    assert 0 <= left["age_s"] < 60
    assert f"{job}: commit of vda, started " in cli("jobs").out
    assert "\n  into base.qcow2\n" in cli("jobs").out
    leftovers.allow(*records(running))


def test_progress_is_a_line_at_a_time_on_stderr(vda):
    _, cli, _ = vda
    process = cli.start("--json", "stream", "vda", "--progress", *SLOW)
    line = json.loads(process.stderr.readline())
    assert line["progress"]["job"] == cli.job()
    process.terminate()
    assert cli.end(process).code == 130


def happen_until_heard(running, process):
    """Make events until the command prints one: those from before it has connected are lost."""
    until = time.monotonic() + 60
    for word in itertools.cycle(("cont", "stop")):
        running.qmp(word)
        if select.select([process.stdout], [], [], 0.05)[0]:
            return
        assert time.monotonic() < until, "no event was printed"


def test_events_are_a_line_each_until_the_link_is_lost(vda):
    running, cli, _ = vda
    process = cli.start("--json", "events", "st*", "RESUME")
    happen_until_heard(running, process)
    event = json.loads(process.stdout.readline())
    assert (event["version"], event["event"]) in {(1, "RESUME"), (1, "STOP")}
    running.kill()
    *_, last = cli.end(process).out.splitlines()
    assert (process.returncode, json.loads(last)["error"]["type"]) == (5, "LinkLost")


def test_events_end_quietly_when_the_reader_goes(vda):
    running, cli, _ = vda
    refused = cli("--json", "events", "STPO")
    assert (refused.code, refused.json["error"]["hint"]) == (3, "did you mean STOP?")
    process = cli.start("events")
    happen_until_heard(running, process)
    process.stdout.close()
    with process:
        assert (process.wait(60), process.stderr.read()) == (0, "")


@pytest.mark.parametrize("progress", [(), ("--progress",)], ids=["quiet", "progress"])
def test_qemu_killed_under_a_job_exits_5_soon(vda, leftovers, progress):
    running, cli, _ = vda
    process = cli.start("--json", "commit", "vda", *SLOW, *progress)
    cli.job("commit")
    running.kill()
    started = time.monotonic()
    ended = cli.end(process)
    assert time.monotonic() - started < SOON
    error = ended.json["error"]
    assert (ended.code, error["type"], error["changed"]) == (5, "LinkLost", "yes")
    leftovers.allow(*records(running))


# -- on a terminal -----------------------------------------------------------------------------------

PROMPT = "[d]etach, [c]ancel, c[o]ntinue? "


def test_terminal_shows_a_bar(vda):
    _, cli, _ = vda
    with Terminal(cli, "stream", "vda", *SLOW) as terminal:
        terminal.wait_for("stream running")
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        terminal.type("c\n")
        assert terminal.end().code == 130


def test_terminal_asks_and_goes_on(vda):
    running, cli, made = vda
    with Terminal(cli, "--json", "stream", "vda", *SLOW) as terminal:
        job = cli.job()
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        terminal.type("what?\n")
        terminal.wait_for(PROMPT)
        terminal.type("o\n")
        terminal.wait_for("continuing")
        terminal.type("\x03")  # the first again
        terminal.wait_for(PROMPT)
        terminal.type("o\n")
        running.qmp("block-job-set-speed", device=job, speed=0)
        ended = terminal.end()
    assert ended.code == 0, ended
    assert ended.json["chains"] == {"vda": [made.active]}


def test_terminal_asks_while_the_operation_goes_on_and_ends(vda):
    running, cli, made = vda
    with Terminal(cli, "--json", "stream", "vda", *SLOW) as terminal:
        job = cli.job()
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        running.qmp("block-job-set-speed", device=job, speed=0)
        terminal.wait_for("the job has ended meanwhile")
        ended = terminal.end()
    assert (ended.code, ended.json["chains"]) == (0, {"vda": [made.active]})


@pytest.mark.parametrize("answer", ["d\n", "\x03"], ids=["answer", "second"])
def test_terminal_detaches_and_job_wait_finishes(vda, answer):
    _, cli, made = vda
    with Terminal(cli, "commit", "vda", *SLOW) as terminal:
        job = cli.job("commit")
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        terminal.type(answer)
        ended = terminal.end()
    assert (ended.code, ended.out) == (130, f"{job}\n")
    assert f"left job {job} running" in ended.err
    assert f"job wait {job}" in ended.err
    assert cli.job("commit") == job
    listed = cli("jobs").out
    assert f"qmpsnap job wait {job}" in listed
    assert cli("job", "speed", job, "0").out == f"{job}: no limit\n"
    done = cli("--json", "job", "wait", job)
    assert (done.code, done.json["active"]) == (0, {"vda": made.files[0]}), done


def test_terminal_cancels(vda):
    _, cli, made = vda
    with Terminal(cli, "--json", "mirror", "vda", "copy.qcow2", "--pivot", *SLOW) as terminal:
        cli.job("mirror")
        terminal.type("\x03")
        terminal.wait_for(PROMPT)
        terminal.type("c\n")
        ended = terminal.end()
    assert (ended.code, ended.json["error"]["type"], ended.json["error"]["changed"]) == (
        130,
        "Interrupted",
        "no",
    )
    assert not (Path(made.active).parent / "copy.qcow2").exists()


# -- waiting for jobs in the way ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("snapshot", "n1"),
        ("snapshot", "n1", "--internal"),
        ("commit", "vda"),
        ("mirror", "vda", "copy.qcow2", "--finish"),
        ("checkpoint", "c2"),
        ("save", "memory"),
        ("revert", "c1"),
        ("delete", "c1"),
    ],
    ids=" ".join,
)
def test_wait_waits_for_the_job_of_another_client(vda, words):
    running, cli, _ = vda
    running.qmp("cont")
    assert cli("checkpoint", "c1", "--mode", "in-place").code == 0
    node = running.roots()["vda"][0]
    theirs = {"job-id": "theirs", "device": node, "sync": "full", "speed": 65536}
    running.qmp("drive-backup", theirs, target=f"{running.folder}/theirs.qcow2", format="qcow2")
    refused = cli("--json", *words)
    assert (refused.code, refused.json["error"]["type"]) == (3, "Busy"), refused
    process = cli.start("--json", *words, "--wait")
    time.sleep(1)
    assert process.poll() is None
    running.qmp("block-job-set-speed", {"device": "theirs", "speed": 0})
    ended = cli.end(process)
    assert ended.code == 0, ended
    assert ended.json["op"].partition("-")[0] == words[0]
