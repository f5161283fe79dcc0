"""`top`: on a terminal of its own, whose screen is read, and into a pipe."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from integration.cli import Cli, Screen
from integration.known_images import QEMUS
from integration.machines import blockdev, wait_for

# The terminal is the same whatever QEMU is followed.
FIRST, LAST = (pytest.mark.parametrize("qemu", [qemu], ids=[qemu.short]) for qemu in (QEMUS[0], QEMUS[-1]))
CAUSE = "QEMU was started with -S: the guest has not run yet, or it was reset while it was paused."
CAUSE_LINES = [CAUSE[:-12], "    was paused."]  # on 80 columns
CHAIN = "vda: [base] <- [s1*]"
NEXT = "next: qmpsnap cont starts it"
SLOW = {"job-id": "theirs", "device": "vda-node", "speed": 65536}


@pytest.fixture
def vda(images, machine):
    with machine(*blockdev("vda", images("base <- s1").active)) as running:
        yield running, Cli(running)


@FIRST
def test_top_follows_a_machine_on_a_terminal(vda):
    running, cli = vda
    with Screen(cli, "top") as screen:
        lines = screen.wait_for("prelaunch", "vda: ")
        assert lines[1:6] == [*CAUSE_LINES, NEXT, "DISKS", CHAIN]
        running.qmp("cont")
        lines = screen.wait_for("running", "RESUME")
        assert (len(lines), lines[0]) == (24, f"running  {Path(running.socket).name}")
        running.qmp("block-stream", SLOW)
        lines = screen.wait_for("stream of vda: running", "% of ")
        assert re.fullmatch(r"  [█░]{30} \d+% of [\d.]+ MiB.*", lines[lines.index("JOBS") + 2])
        screen.resize(40, 12)
        lines = screen.wait_for("EVENTS")
        while len(lines) != 12:  # a frame of the old size was on its way
            lines = screen.wait_for("EVENTS")
        assert max(map(len, lines)) <= 40
        running.qmp("job-cancel", id="theirs")
        screen.wait_for("BLOCK_JOB_CANCELLED")

        screen.process.send_signal(signal.SIGTSTP)
        os.waitid(os.P_PID, screen.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert screen.settings == screen.before
        screen.process.send_signal(signal.SIGCONT)
        screen.wait_for("running")

        screen.type("q")
        code, lines = screen.end()
        assert (code, lines[0], "DISKS" in lines) == (0, f"running  {Path(running.socket).name}", True)
        assert screen.settings == screen.before


@LAST
def test_top_leaves_the_last_state_on_the_terminal_when_qemu_ends(vda):
    running, cli = vda
    with Screen(cli, "top") as screen:
        screen.wait_for("vda: [base] <- [s1*]")
        running.kill()
        code, lines = screen.end()
    assert (code, lines[:6]) == (
        5,
        [f"prelaunch  {Path(running.socket).name}", *CAUSE_LINES, NEXT, "DISKS", CHAIN],
    )
    assert "the other side closed it" in " ".join(" ".join(lines).split())


def test_top_prints_lines_for_each_change_into_a_pipe(vda):
    running, cli = vda
    process, name = cli.start("top"), Path(running.socket).name
    state = [f"prelaunch  {name}\n", f"{CAUSE}\n", f"{NEXT}\n", f"{CHAIN}\n", "\n"]
    assert [process.stdout.readline() for _ in state] == state
    running.qmp("cont")
    assert process.stdout.readline().endswith(" RESUME\n")
    assert process.stdout.readline() == f"running  {name}\n"
    running.qmp("block-stream", {**SLOW, "speed": 0})
    wait_for(lambda: running.qmp("query-jobs") == [], "the job's end")
    while (line := process.stdout.readline()) != "vda: [s1*]\n":
        assert line, process.stderr.read()
    process.send_signal(signal.SIGINT)
    assert cli.end(process).code == 130


@FIRST
def test_top_prints_one_state_as_json_and_refuses_images(vda):
    running, cli = vda
    once = cli("--json", "top", "--once").json
    assert (once["status"]["status"], [disk["name"] for disk in once["disks"]]) == ("prelaunch", ["vda"])
    refused = cli("--json", "-i", "vda=s1.qcow2", "top")
    assert (refused.code, json.loads(refused.out)["error"]["type"]) == (3, "Unsupported")
    assert running.qmp("query-jobs") == []
