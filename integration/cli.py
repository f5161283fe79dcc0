"""The command as a process, in a pipe or on a terminal of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import NamedTuple

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
        self.machine = machine
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
        with self.start(*words) as process:
            return Ended(0, *process.communicate(timeout=30))._replace(code=process.returncode)

    def end(self, process):
        with process:
            return Ended(0, *process.communicate(timeout=30))._replace(code=process.returncode)

    def job(self, name="stream"):
        """Wait until a job of that operation runs; return its id."""
        found = []

        def runs():
            assert self.started.returncode is not None or self.started.poll() is None, "the command has ended"
            found[:] = [one["id"] for one in self.machine.qmp("query-jobs") if name in one["id"]]
            return found

        wait_for(runs, f"a job {name}")
        return found[0]


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
        self.seen = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.ours)
        with self.process:
            self.process.kill()

    def type(self, text):
        os.write(self.ours, text.encode())

    def wait_for(self, text, limit=20.0):
        until = time.monotonic() + limit
        while text not in self.seen:
            left = until - time.monotonic()
            assert left > 0, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.ours], [], [], left)[0]:
                try:
                    self.seen += os.read(self.ours, 65536).decode()
                except OSError:  # the terminal's other end is closed
                    assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]

    def end(self):
        stdout = self.process.stdout.fileno()
        out, unended = "", {self.ours, stdout}
        while unended and (ready := select.select([*unended], [], [], 20)[0]):
            for descriptor in ready:
                try:
                    more = os.read(descriptor, 65536).decode()
                except OSError:  # the terminal's other end is closed
                    more = ""
                if not more:
                    unended.discard(descriptor)
                elif descriptor == stdout:
                    out += more
                else:
                    self.seen += more
        return Ended(self.process.wait(20), out, self.seen)


def records(running):
    """Records that a test leaves on purpose, or because QEMU is gone."""
    return list(running.folder.glob("*.qmpsnap/intent-*"))
