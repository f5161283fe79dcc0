"""template, clone and fork on the command line, with a launcher that is a shell script."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
from pathlib import Path

from integration.cli import Cli
from integration.machines import CHEAP, blockdev, listing

BY_FORK = ["create-images", "start-helper", "write-state", "start-children", "end-children"]


def script(qemu, folder, *, run="exec"):
    words = [shlex.quote(str(word)) for word in (qemu.system, *CHEAP, *blockdev("vda", "IMAGE"))]
    text = " ".join(words).replace("IMAGE", "'\"$QMPSNAP_DISK_vda\"'")
    file = folder / f"start-{run}.sh"
    file.write_text(f'#!/bin/sh\n{run} {text} "$@"\n')
    file.chmod(0o755)
    return file


def end_by_ctrl_c(process, *codes):
    """Let it end, with one of these exit codes."""
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in codes, err


def greets(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        return b'"QMP"' in client.recv(4096)


def test_template_clone_and_fork_run_until_ctrl_c(qemu, images, machine, tmp_path):
    vda, start = images("base"), script(qemu, tmp_path)
    with machine(*blockdev("vda", vda.active)) as running:
        running.qmp("cont")
        cli = Cli(running)
        plan = cli("--launcher", start, "template", "-n", "t1", tmp_path / "t1")
        assert plan.code == 0, plan.err
        sent = [line.split('"execute": ')[1] for line in plan.out.splitlines() if '"execute": ' in line]
        assert any("background-snapshot" in line for line in sent)
        assert f'start-helper {{"checkpoint": "t1", "memory": "{tmp_path}/t1/memory"}}' in plan.out
        files = listing(tmp_path)
        plan = cli("--launcher", start, "--json", "fork", "2", "-n")
        assert (plan.code, plan.json["changed"], listing(tmp_path)) == (0, False, files), plan.err
        sent = [step["command"] for step in plan.json["plan"]["steps"] if step["on"] == "qmp"]
        assert {"stop", "transaction", "migrate", "cont"} <= {*sent}
        assert [step["command"] for step in plan.json["plan"]["then"]] == [*BY_FORK, "delete-checkpoint"]
        assert plan.json["plan"]["then"][3]["arguments"]["number"] == 2
        (overlay,) = {files[0] for files in plan.json["plan"]["after"].values()}
        assert re.fullmatch(rf"{tmp_path}/base\.fork-[0-9a-f]{{8}}\.qcow2", overlay)
        wrapper = script(qemu, tmp_path, run="command")  # a shell with QEMU as its child
        before = listing(tmp_path)
        with cli.start("--launcher", wrapper, "--json", "fork", "2") as process:
            children = [json.loads(process.stdout.readline()) for _ in range(2)]
            assert {child["number"] for child in children} == {0, 1}
            assert all(greets(child["qmp"]) for child in children)
            end_by_ctrl_c(process, 0, 130)  # 130 before it waits for Ctrl-C
        assert listing(tmp_path) == before
        made = cli("--launcher", start, "--json", "template", "t1", tmp_path / "t1")
        assert (made.code, made.json["name"]) == (0, "t1"), made.err
        active = running.qmp("query-block")[0]["inserted"]["file"]
        assert (made.json["taken"], made.json["active"]) == (True, {"vda": active})
        assert made.json["chains"]["vda"][0] == active
        assert cli("--launcher", start, "template", "t1", tmp_path / "t1").code == 3
    with cli.start("--launcher", start, "clone", tmp_path / "t1") as process:
        pid, _, path = process.stdout.readline().strip().partition(", ")
        assert pid.startswith("pid ")
        assert greets(path)
        assert process.stdout.readline() == "running until Ctrl-C\n"
        end_by_ctrl_c(process, 0)
        assert not Path(path).exists()
    removed = cli("--json", "template", "--remove", tmp_path / "t1")
    assert (removed.code, len(removed.json["removed"])) == (0, 1), removed.err
    assert [file for file in listing(tmp_path) if "template" in file] == []


def layers(running):
    """The files of the disk's chain, the newest first."""
    image, files = running.qmp("query-block")[0]["inserted"]["image"], []
    while image is not None:
        files.append(image["filename"])
        image = image.get("backing-image")
    return files


@contextlib.contextmanager
def forked(running, start, *words):
    """A fork of the machine; its client holds the usual monitor, and is killed at the end of the block."""
    cli = Cli(running)
    with cli.start("--launcher", start, "fork", "1", *words) as process:
        try:
            assert process.stdout.readline().startswith("0: pid ")
            yield
        finally:
            process.kill()
            process.communicate(timeout=60)


def test_fork_is_no_interrupted_operation_as_long_as_its_client_lives(
    qemu, images, machine, tmp_path, temporary
):
    start, second = script(qemu, tmp_path), temporary / "qmp"
    more = ("-qmp", f"unix:{second},server=on,wait=off")
    with machine(*blockdev("vda", images("base <- s1").active), *more) as running:
        running.qmp("cont")
        cli = Cli(running)
        before = listing(tmp_path)
        with forked(running, start):
            shown = cli("-s", second, "jobs")
            assert (shown.code, shown.out) == (0, "no jobs\n"), shown.err
            assert cli("-s", second, "doctor").out == "no trouble found\n"
            (record,) = [path.name for path in tmp_path.glob("*.qmpsnap/moment-*")]
            job_id = re.search(r"qmpsnap-fork-keep-[0-9a-f]{8}", record)[0]
            waited = cli("-s", second, "job", "wait", job_id)
            assert (waited.code, "is still at work" in waited.err) == (3, True), waited
        assert f"to finish it: qmpsnap job wait {job_id}" in cli("jobs").out
        plan = cli("job", "cancel", job_id, "-n")
        assert (plan.code, plan.out.count("block-commit")) == (0, 1), plan
        assert "becomes [base] <- [s1*]" in " ".join(plan.out.split())
        assert cli("job", "cancel", job_id).code == 0
        assert (cli("jobs").out, listing(tmp_path)) == ("no jobs\n", before)


def test_fork_of_a_checkpoint_whose_client_is_killed_leaves_what_jobs_says_how_to_remove(
    qemu, images, machine, tmp_path, temporary
):
    start, second = script(qemu, tmp_path), temporary / "qmp"
    more = ("-qmp", f"unix:{second},server=on,wait=off")
    with machine(*blockdev("vda", images("base").active), *more) as running:
        running.qmp("cont")
        cli = Cli(running)
        assert cli("checkpoint", "c1", "--mode", "in-place").code == 0
        before = listing(tmp_path)
        plan = cli("--launcher", start, "--json", "fork", "1", "--of", "c1", "-n")
        assert [step["command"] for step in plan.json["plan"]["steps"]] == BY_FORK
        absent = cli("--launcher", start, "fork", "1", "--of", "c2", "-n")
        assert (absent.code, listing(tmp_path)) == (3, before), absent.err
        assert "no snapshot 'c2'" in absent.err
        with forked(running, start, "--of", "c1"):
            assert cli("-s", second, "jobs").out == "no jobs\n"
        first, file, way = cli("jobs").out.splitlines()
        (left,) = cli("--json", "jobs").json["left"]
        assert first == "a fork: its client is gone, and has left"
        assert tmp_path / file.strip() == Path(left["files"][0])
        command = f"qmpsnap template --remove {left['files'][0]}"
        assert (way, left["ways"], left["kind"]) == (f"  to remove that: {command}", [command], "fork")
        scratch = Path(left["directory"]).parent
        assert scratch.name.startswith("qmpsnap-run-")  # any other call may have removed it by now
        assert cli(*command.split()[1:]).code == 0
        assert (cli("jobs").out, listing(tmp_path), scratch.exists()) == ("no jobs\n", before, False)


def test_fork_whose_client_is_killed_is_undone_by_delete(qemu, images, machine, tmp_path):
    vda, start = images("base <- s1"), script(qemu, tmp_path)
    with machine(*blockdev("vda", vda.active)) as running:
        running.qmp("cont")
        cli = Cli(running)
        before, chain = listing(tmp_path), layers(running)
        process = cli.start("--launcher", start, "fork", "1")
        assert process.stdout.readline().startswith("0: pid ")
        process.kill()
        cli.end(process)
        (name,) = [one["name"] for one in cli("--json", "list").json["moments"]]
        assert name.startswith("fork-")
        assert " ".join(cli("list").out.split()).count("left by a fork whose process was killed") == 2
        plan = cli("delete", "-n", name)
        assert plan.out.count("remove-orphan") == 2, plan.err
        undone = cli("delete", name)
        assert (undone.code, len(layers(running))) == (0, len(chain)), undone.err
        assert [file for file in listing(tmp_path) if "template" in file or file.endswith("memory")] == []
        assert cli("list").out.count(".qcow2") == len(chain)
        assert len(listing(tmp_path)) == len(before)
