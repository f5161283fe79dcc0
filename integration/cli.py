"""The command as a process, in a pipe or on a terminal of its own."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

from integration import forking
from integration.machines import wait_for

ROOT = Path(__file__).resolve().parents[1]


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        (line,) = self.out.splitlines()
        return json.loads(line)


class Cli:
    """The command, for one machine."""

    def __init__(self, machine):
        self.machine, self.started = machine, None
        path = f"{machine.qemu.directory}:{os.environ['PATH']}"
        self.environment = os.environ | {
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "QMPSNAP_SOCKET": machine.socket,
        }

    def start(self, *words, **options):
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.started = subprocess.Popen(
            [sys.executable, "-m", "qmpsnap", *map(str, words)],
            env=self.environment, text=True, cwd=self.machine.folder, **(pipes | options),
        )  # fmt: skip
        return self.started

    def __call__(self, *words):
        """Run it to its end, in a process that is forked."""
        folder = self.machine.folder
        return Ended(*forking.command(*map(str, words), environment=self.environment, folder=folder))

    def afresh(self, *words):
        """Run it to its end, in a process that starts from nothing, as a shell's does."""
        return self.end(self.start(*words))

    def end(self, process):
        with process:
            return Ended(0, *process.communicate(timeout=60))._replace(code=process.returncode)

    def job(self, name="stream"):
        """Wait until a job of that operation runs; return its id."""
        found = []

        def runs():
            going_on = not self.started or self.started.returncode is not None or self.started.poll() is None
            assert going_on, "the command has ended"
            found[:] = [one["id"] for one in self.machine.qmp("query-jobs") if name in one["id"]]
            return found

        wait_for(runs, f"a job {name}")
        return found[0]


def decoder():
    """A function from what was read to text; half a character waits for its other half."""
    return codecs.getincrementaldecoder("utf-8")().decode


class Terminal:
    """A command on a terminal of its own; its stdout is a pipe."""

    def __init__(self, cli, *words):
        self.ours, theirs = pty.openpty()

        def control():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = cli.start(
            *words, stdin=theirs, stderr=theirs, start_new_session=True, preexec_fn=control
        )
        os.close(theirs)
        self.seen, self._decode = "", decoder()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.ours)
        with self.process:
            self.process.kill()

    def type(self, text):
        os.write(self.ours, text.encode())

    def wait_for(self, text, limit=60.0):
        until = time.monotonic() + limit
        while text not in self.seen:
            left = until - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.ours], [], [], left)[0]:
                try:
                    self.seen += self._decode(os.read(self.ours, 65536))
                except OSError:  # the terminal's other end is closed
                    assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def end(self):
        stdout = self.process.stdout.fileno()
        out, unended = b"", {self.ours, stdout}
        while unended and (ready := select.select([*unended], [], [], 60)[0]):
            for descriptor in ready:
                try:
                    more = os.read(descriptor, 65536)
                except OSError:  # the terminal's other end is closed
                    more = b""
                if not more:
                    unended.discard(descriptor)
                elif descriptor == stdout:
                    out += more
                else:
                    self.seen += self._decode(more)
        return Ended(self.process.wait(60), out.decode(), self.seen)


class Screen:
    """A command on a terminal that it fills; it reads the screen that the command has drawn last."""

    _FRAME, _END = "\x1b[H", "\x1b[?1049l"

    def __init__(self, cli, *words, columns=80, lines=24):
        self.ours, theirs = pty.openpty()
        self._sizes = []
        self.resize(columns, lines)
        self.before = termios.tcgetattr(theirs)
        cli.environment |= {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        self.process = cli.start(
            *words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._theirs = theirs
        self._read, self._decode = "", decoder()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._theirs)
        os.close(self.ours)
        with self.process:
            self.process.kill()

    def resize(self, columns, lines):
        self._sizes.append([columns] * lines)
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text):
        os.write(self.ours, text.encode())

    @property
    def settings(self):
        return termios.tcgetattr(self._theirs)

    def wait_for(self, *texts, limit=60.0):
        """Return the first whole screen with all the texts."""
        until = time.monotonic() + limit
        while True:
            for frame in map(self._lines, self._read.split(self._FRAME)[1:]):
                whole = [*map(len, frame)] in self._sizes  # each line is filled up with blanks
                if whole and all(any(text in line for line in frame) for text in texts):
                    self._read = ""
                    return [line.rstrip() for line in frame]
            self._more(until, texts)

    def end(self):
        """Wait for the end; return the exit code, and what is on the terminal then."""
        while self._END not in self._read:
            self._more(time.monotonic() + 60, self._END)
        code = self.process.wait(60)
        while select.select([self.ours], [], [], 0.05)[0]:
            self._read += self._decode(os.read(self.ours, 65536))
        return code, [line.rstrip() for line in self._lines(self._read.partition(self._END)[2])]

    def _more(self, until, wanted):
        left = until - time.monotonic()
        assert left > 0, f"{wanted} did not come: {self._read!r}"
        if select.select([self.ours], [], [], left)[0]:
            self._read += self._decode(os.read(self.ours, 65536))

    @staticmethod
    def _lines(text):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).split("\r\n")


def records(running):
    """Records that a test leaves on purpose, or because QEMU is gone."""
    return list(running.folder.glob("*.qmpsnap/intent-*"))
