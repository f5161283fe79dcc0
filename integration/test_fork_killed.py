"""kill -9 of the client of a fork: `jobs` shows what is left, and the commands that it prints mend it."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from pathlib import Path

import pytest

from integration.known_images import KIB, MIB
from integration.machines import blockdev, listing
from integration.processes import until_ended
from integration.states import status
from integration.test_kill import give
from qmpsnap.cli.main import run as run_command

pytestmark = pytest.mark.timeout(1200)  # with --all some 170 clients are killed, each in a second or more
WAY = re.compile(r" +(?:to finish it: |to remove that: )?(qmpsnap (?:job wait|template --remove) .*)")


class Jobs:
    """`jobs` of a machine, as it is typed; its commands are run exactly as printed."""

    def __init__(self, running, capsys):
        self._words, self._capsys = ("-s", running.socket), capsys

    def __call__(self):
        """What it prints, and the commands in that."""
        lines = self.run("jobs")
        return "\n".join(lines), [found[1] for line in lines if (found := WAY.fullmatch(line))]

    def mend(self):
        """Run what it prints, until there is nothing more; return what it has printed until then."""
        printed = []
        while (now := self())[0] != "no jobs":
            assert len(printed) < 4, printed
            printed.append(now[0])
            for way in now[1]:
                self.run(*shlex.split(way)[1:])
        return printed

    def run(self, *words):
        code = run_command([*self._words, *words])
        out, err = self._capsys.readouterr()
        assert code == 0, f"{words}: {err}"
        return out.splitlines()


def kind(printed):
    """What `jobs` showed first: nothing, the checkpoint that is taken or there, or its merge."""
    if not printed:
        return "nothing"
    return "merge" if "commit-pivot" in printed[0] else "fork"


@pytest.fixture
def scratch(temporary, monkeypatch):
    """Where temporary files are, also those of processes."""
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


def test_killed_client_of_a_fork_leaves_what_jobs_shows_and_its_commands_mend(
    qemu, images, machine, everything, capsys, doctor, scratch
):
    """kill -9 after every seventh step, on other QEMUs than the first every nineteenth."""
    step = 1 if everything else 7 if qemu.short == "7.2" else 19
    vda, found = images("base <- s1", folder="a"), []
    with machine(*blockdev("vda", vda.active)) as running:
        running.qmp("cont")
        jobs, diagnosis = Jobs(running, capsys), doctor(running)
        before, (chain, *_) = listing(running.folder), jobs.run("chain")
        for point in range(step // 2, 180, step):
            running.write("vda", point + 1, 6 * MIB, 64 * KIB)
            ended = give(socket=running.socket, qemu=qemu.version, fork=str(scratch), point=point)
            until_ended(running, scratch, running.folder / "a")
            memory = re.findall(r'"vm_state_file": ?"(/[^"]+)"', "".join(jobs.run("--json", "list")))
            printed = jobs.mend()
            for file in running.folder.rglob(".moment-*.json.????????"):
                file.unlink()  # killed as it was written; the next record removes it, from a minute on
            assert diagnosis.look() == ([], 0), diagnosis.text
            assert (jobs.run("chain")[0], listing(running.folder)) == (chain, before)
            found.append(kind(printed))
            assert list(scratch.glob("qmpsnap-run-*")) == [], (point, printed)
            if printed:
                assert not any(map(os.path.lexists, memory))
                places = (Path(file).parent for file in memory)
                assert [place for place in places if place != running.folder / "a" and place.exists()] == []
            assert status(running) == "running"
            running.read("vda", point + 1, 6 * MIB, 64 * KIB)
            if ended == 0:
                break
            assert ended == -9
        assert ended == 0
    assert found[-1] == "nothing"
    assert {"fork"} <= {*found} if step > 7 else {"fork", "merge"} <= {*found}
