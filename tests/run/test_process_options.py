"""The options of a process, with those in its -readconfig files."""

from __future__ import annotations

import os

from qmpsnap.model.command_line.options import Option
from qmpsnap.run.process_options import process_options


def of_line(*words):
    return process_options(os.getpid(), ("/usr/bin/qemu-system-x86_64", *words))


def test_file_is_replaced_by_the_options_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.cfg").write_bytes(b'[name]\n  guest = "v\xff"\n')
    (tmp_path / "b.cfg").write_bytes(b'[mon "m"]\n')
    line = ["-S", "-readconfig", "a.cfg", "--readconfig", str(tmp_path / "b.cfg"), "-s"]
    assert of_line(*line) == (
        Option("-S"),
        Option("-name", "guest=v\udcff"),
        Option("-mon", "id=m"),
        Option("-s"),
    )


def test_file_that_cannot_be_read_stays_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "socket").mkdir()
    for file in (tmp_path / "fifo", tmp_path / "socket", tmp_path / "none", "no\0file"):
        assert of_line("-readconfig", str(file)) == (Option("-readconfig", str(file)),)
    assert of_line("-readconfig") == (Option("-readconfig"),)
