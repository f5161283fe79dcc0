"""Which path leads to what a process calls by a path of its own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from subprocess import PIPE

import pytest

from qmpsnap.run.process_paths import is_hidden, path_here, seen_as, status_of

CHANGES_DIRECTORY = "import os, sys; os.chdir(sys.argv[1]); print(flush=True); input()"


@pytest.fixture
def moved(tmp_path):
    """A process that was started in `from` and works in `to`, as `-daemonize` changes to the root."""
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
    words = [sys.executable, "-S", "-c", CHANGES_DIRECTORY, tmp_path / "to"]
    start = tmp_path / "from"
    with subprocess.Popen(words, cwd=start, env={"PWD": str(start)}, stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.communicate(b"\n")


def test_relative_path_counts_from_the_directory_that_has_the_file(moved, tmp_path):
    assert [*seen_as(moved, "a/../s")] == [str(tmp_path / "to/s"), str(tmp_path / "from/s")]
    assert [*seen_as(moved, "/abs/../s")] == ["/abs/../s"]
    wanted = tmp_path / "from" / "s"

    def fits(status):
        return stat.S_ISREG(status.st_mode) and os.path.samestat(status, wanted.stat())

    (tmp_path / "to" / "s").touch()
    wanted.touch()
    assert path_here(moved, "s", fits) == str(wanted)
    assert path_here(moved, "none", fits) == ""
    wanted.unlink()
    assert path_here(moved, "s", lambda status: stat.S_ISSOCK(status.st_mode)) == ""


def test_directory_of_the_start_is_told_by_a_file_that_is_open_by_a_relative_name(tmp_path):
    start = tmp_path / "start"
    (start / "sub").mkdir(parents=True)
    (start / "sub" / "log").touch()
    (tmp_path / "elsewhere").touch()
    program = (
        "import os, sys; f = [open(a) for a in sys.argv[1:3]]; os.chdir('/'); print(flush=True); input()"
    )
    named = ["sub/log", str(tmp_path / "elsewhere"), "file:./sub/log,elsewhere=sub"]
    words = [sys.executable, "-S", "-c", program, *named]
    with subprocess.Popen(words, cwd=start, env={}, stdin=PIPE, stdout=PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        # the name after "elsewhere" is not of this process's, but could be: that the file is there decides
        assert [*seen_as(child.pid, "s")] == ["/s", str(start / "s"), str(tmp_path / "s")]
        child.communicate(b"\n")


def test_what_lies_in_a_directory_that_we_may_not_enter_is_hidden(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    ours = os.geteuid()
    if ours == 0:
        os.seteuid(65534)  # root may enter every directory
    try:
        assert is_hidden(os.getpid(), f"{closed}/s")
        assert not is_hidden(os.getpid(), "/none/s")
    finally:
        os.seteuid(ours)


def test_nothing_is_known_of_a_process_that_is_gone(tmp_path):
    assert [*seen_as(1 << 30, "s")] == []
    assert status_of(1 << 30, str(tmp_path)) is None
