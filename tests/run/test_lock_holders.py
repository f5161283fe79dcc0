"""Who has an image open whose lock QEMU did not get."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

from qmpsnap.model.hints import hint_for
from qmpsnap.run.holders import Holder
from qmpsnap.run.lock_holders import lock_holders, refusal_hint, user_of
from tests.each import each

LOCK = 'Failed to get "write" lock'
OPEN = """
import fcntl, os, sys
for name in sys.argv[1:]:
    fcntl.flock(os.open(name, os.O_RDONLY), fcntl.LOCK_SH)
print("open", flush=True)
input()
"""


@contextmanager
def opening(*files):
    """Another process that has the files, or directories, open and locked (flock)."""
    words = [sys.executable, "-S", "-c", OPEN, *files]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.communicate(b"\n")


async def test_refusal_hint_names_the_process_that_has_the_file_open(tmp_path):
    file = str(tmp_path / "a")
    (tmp_path / "a").touch()
    arguments = {"driver": "qcow2", "file": {"driver": "file", "filename": file}, "x": [{"filename": "rel"}]}
    with opening(file) as pid:
        hint = await refusal_hint(LOCK, arguments, pid=os.getpid())
        assert hint.startswith(f"process {pid} (python")
        assert hint.endswith(f") has {file} open; repeat the command when that has ended")
        assert await refusal_hint("Permission denied", arguments, pid=1) == hint_for("Permission denied")
        assert await refusal_hint(LOCK, arguments, pid=None) == hint_for(LOCK)
    assert await refusal_hint(LOCK, arguments, pid=os.getpid()) == hint_for(LOCK)


def test_lock_holders_looks_at_all_images_of_the_process_when_no_file_is_named(tmp_path):
    files = [str(tmp_path / name) for name in "abcde"]
    for name in "abcde":
        (tmp_path / name).touch()
    with opening(*files) as mine, opening(*files[:4]) as other, opening(files[4]) as third:
        found = lock_holders((), mine)
        assert (found.count(f"process {other} ("), found.count(f"process {third} (")) == (1, 1)
        assert found.count(str(tmp_path)) == 4
        assert ", and 1 more open" in found
        assert lock_holders((), 1 << 30) == ""


@each("file", ["/none", "/nul\0"])
def test_lock_holders_knows_nobody_when_a_name_leads_to_no_file(file):
    assert lock_holders((file,), None) == ""


def test_user_of_is_the_other_process_that_has_the_file_open(tmp_path):
    file = tmp_path / "a"
    file.touch()
    with file.open(), opening(str(file)) as pid:
        assert user_of(str(file)).pid == pid
    with file.open():
        assert user_of(str(file)) == Holder()
    assert user_of("/none") == Holder()
