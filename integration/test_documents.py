"""What the README and the tutorials tell people to type, typed from top to bottom."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from integration.cli import ROOT, Cli, Terminal
from integration.machines import blockdev, drive

pytestmark = pytest.mark.one_qemu

INDEX = (ROOT / "docs" / "index.md").read_text()
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
TESTERS = (ROOT / "docs" / "tutorial-testing.md").read_text()


def typed(text, heading, block=0):
    """The command lines of ours in a block of code below a heading, comments left out."""
    code = text.split(f"## {heading}\n")[1].split("```")[2 * block + 1]
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words[1:] for words in lines if words[:1] == ["qmpsnap"]]


@pytest.mark.parametrize("way", [drive, blockdev], ids=["drive", "blockdev"])
def test_readme_s_commands_run_in_their_order(images, machine, tmp_path, way):
    fast = tmp_path / "fast"
    fast.mkdir()
    commands = typed(README, "From the shell")
    assert len(commands) > 15
    with machine(*way("vda", images("vda").active)) as running:
        cli = Cli(running)
        run = cli.afresh if way is drive else cli
        for words in commands:
            ended = run(*(word.replace("/fast/", f"{fast}/") for word in words))
            assert ended.code == 0, (words, ended)
        assert running.qmp("query-status")["status"] == "running"
        active = cli("--json", "chain", "vda").json["disks"][0]["layers"][0]["file"]
    commands = typed(README, "From the shell", block=1)
    assert len(commands) == 2
    for words in commands:
        ended = cli(*(word.replace("vda.qcow2", active) for word in words))
        assert ended.code == 0, (words, ended)


def test_readme_s_commands_for_a_trouble_find_none_on_a_healthy_machine(images, machine):
    commands = typed(README, "From the shell", block=2)
    assert [words[0] for words in commands] == ["ps", "doctor", "top", "explain", "shell"]
    with machine(*blockdev("vda", images("vda").active)) as running:
        cli = Cli(running)
        for words in commands:
            ended = cli(*words, *(["--once"] if words == ["top"] else []))
            assert ended.code == 0, (words, ended)


async def test_the_first_page_s_python_runs(images, machine, capsys, leftovers):
    code = re.search(r"```python\n(.*?)```", INDEX, re.DOTALL)[1]
    with machine(*blockdev("vda", images("vda").active)) as running:
        code = code.replace("/run/vm1/qmp.sock", running.socket)
        head, _, body = code.partition("\n\n")
        names = {}
        exec(f"{head}\nasync def example():\n{textwrap.indent(body, '    ')}", names)
        await names["example"]()
        assert "before-upgrade.qcow2" in capsys.readouterr().out
        chain = Cli(running)("--json", "chain", "vda").json["disks"][0]["layers"]
    assert [layer["active"] for layer in chain] == [True, False]


# -- the tutorial -------------------------------------------------------------------------------------


def told(text):
    """Lines without what differs from run to run: numbers, units, ids, and how wide a column is."""
    text = re.sub(r"\b[0-9a-f]{8}\b", "ID", text)
    text = re.sub(r"\d+(\.\d+)?( (B|KiB|MiB|ms|s)\b)?(/s)?", "N", text)
    text = re.sub(r"\b(running|ready)\b(?= N%)", "STATE", text.replace("  ", " "))
    return [" ".join(line.split()) for line in text.splitlines()]


def sessions():
    """Each command line of the tutorial's terminals, with what it prints."""
    for block in re.findall(r"```console\n(.*?)```", TUTORIAL, re.DOTALL):
        for part in block.split("$ ")[1:]:
            line, _, printed = part.partition("\n")
            yield line, printed


@pytest.fixture
def tutorial(qemu, tmp_path):
    """The tutorial's machine, and the command for it; both run in an empty directory."""
    script = re.search(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)[1]
    folder = tmp_path / "vm1"
    folder.mkdir()
    (folder / "machine.py").write_text(script)
    environment = os.environ | {"PATH": f"{qemu.directory}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def start():
        return subprocess.Popen(
            [sys.executable, "-u", "machine.py"], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    with start() as process:
        try:
            assert process.stdout.readline() == "the guest has booted, and writes to both disks\n"
            yield SimpleNamespace(qemu=qemu, folder=folder, socket=str(folder / "qmp.sock"), start=start)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_tutorial_s_commands_print_what_it_shows(tutorial, leftovers):
    cli = Cli(tutorial)
    leftovers.allow(*tutorial.folder.iterdir())
    job, code = "", 0
    for line, printed in sessions():
        if line == "python machine.py":
            continue
        if line == "echo $?":
            assert printed.strip() == str(code)
            continue
        words = [re.sub(r"(qmpsnap-mirror-pivot)-[0-9a-f]{8}", job, word) for word in shlex.split(line)[1:]]
        if "^C" in printed:
            with Terminal(cli, *words) as terminal:
                terminal.wait_for("mirror running")
                terminal.type("\x03")
                terminal.wait_for("c[o]ntinue? ")
                terminal.type("d\n")
                ended = terminal.end()
            job = ended.out.strip()
            out = ended.err.replace("\r", "").removeprefix("d\n") + ended.out
            shown = printed.partition("c[o]ntinue? d\n")[2]
        else:
            ended = cli(*words)
            out, shown = ended.out + ended.err, printed
        code = ended.code
        here = out.replace(str(tutorial.folder), "/home/you/vm1")
        print(f"$ {line}\n{here}")
        if shown:
            assert told(here) == told(shown), line
        assert code in {0, 3, 130}, ended


def test_tutorial_s_script_does_not_start_from_a_base(tutorial):
    with tutorial.start() as again:
        said = again.communicate(timeout=60)[1]
    assert (again.returncode, said.splitlines()[-1]) == (
        1, f"{tutorial.folder}/vda.qcow2 is there already: begin in an empty directory",
    )  # fmt: skip


# -- the tutorial for testers -------------------------------------------------------------------------


def shown(text):
    """What `told` leaves of a report of pytest, without the minutes of a run that takes more than one."""
    return told(re.sub(r" \(\d+:\d\d:\d\d\)$", "", text, flags=re.MULTILINE))


def test_testers_tutorial_s_files_and_commands_lead_where_it_shows(qemu, tmp_path):
    """Each block is a file to write, whose name is the last one before it, or commands with their output."""
    folder = tmp_path / "suite"
    folder.mkdir()
    qemu.create(folder / "base.qcow2", size="64M")
    # pytest shortens no line where it sees a CI.
    environment = {name: value for name, value in os.environ.items() if not re.match("CI$|PYTEST_", name)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{qemu.directory}:{os.environ['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)
    blocks = re.findall(r"(.*?)```(python|console)\n(.*?)```", TESTERS, re.DOTALL)
    assert [kind for _, kind, _ in blocks].count("console") == 5
    for before, kind, block in blocks:
        if kind == "python":
            (folder / re.findall(r"`(\w+\.py)`", before)[-1]).write_text(block)
            continue
        for part in block.split("$ ")[1:]:
            line, _, printed = part.partition("\n")
            ended = subprocess.run(
                line, shell=True, check=False, cwd=folder, env=environment, text=True, capture_output=True
            )
            here = ended.stdout.replace(str(folder), "/home/you/suite")
            print(f"$ {line}\n{here}{ended.stderr}")
            assert shown(here) == shown(printed), line
            assert ended.returncode == (" failed in " in printed), line
