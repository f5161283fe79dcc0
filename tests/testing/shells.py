"""Shells on this host, in the place of a guest's."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
from contextlib import contextmanager, suppress

import anyio
from anyio.abc import ByteStream

from qmpsnap.testing.shell import MIB, Ran, Shell, check_script


class HostShell(Shell):
    """This host's sh; `answer` changes what it returns."""

    def __init__(self, answer=lambda ran: ran) -> None:
        self.answer = answer

    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b"") -> Ran:
        check_script(script, stdin)
        done = await anyio.run_process(
            ["sh", "-c", script], input=stdin, check=False, stderr=subprocess.STDOUT
        )
        answer: Ran = self.answer(Ran(done.returncode, done.stdout[:most], cut=len(done.stdout) > most))
        return answer


class Terminal(ByteStream):
    """The other end of a pseudo-terminal."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        os.set_blocking(descriptor, False)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        while True:
            try:
                return os.read(self.descriptor, max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self.descriptor)
            except OSError as error:
                raise anyio.EndOfStream from error

    async def send(self, item: bytes) -> None:
        while item:
            try:
                item = item[os.write(self.descriptor, item) :]
            except BlockingIOError:
                await anyio.wait_writable(self.descriptor)
            except OSError as error:
                raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


@contextmanager
def on_a_terminal(*words: str, **environment: str):
    """A program that runs on a pseudo-terminal, as that terminal's stream."""
    pid, descriptor = pty.fork()
    if pid == 0:
        os.execvpe(words[0], words, {**os.environ, **environment})
    try:
        yield Terminal(descriptor)
    finally:
        loop = asyncio.get_running_loop()
        loop.remove_reader(descriptor)
        loop.remove_writer(descriptor)
        os.close(descriptor)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def sleeping_in_a_session(file) -> str:
    """A script that does not end; part of it is in a session of its own, its process id in the file."""
    return f"setsid sh -c 'echo $$ > {file}; exec sleep 600' &\nsleep 600"
