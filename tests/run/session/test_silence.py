"""Why a monitor does not greet."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from qmpsnap.run.session.silence import Silence, why_silent


async def test_why_silent_names_the_client_of_a_tcp_monitor():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        text = f"tcp:127.0.0.1:{address[1]}"
        assert await why_silent(address) == await why_silent(text, os.getpid()) == Silence()
        with closing(socket.create_connection(address)), closing(listener.accept()[0]):
            found = await why_silent(address)
            assert found == await why_silent(text)
    assert found.fact == ": this process itself is connected to it"
    assert "one client at a time" in found.hint


@pytest.fixture(params=["qmpsnap", "another"])
def held(request, tmp_path):
    """The name of a program, and a socket to which it is connected."""
    path, program = str(tmp_path / "qmp"), tmp_path / request.param
    program.write_text(
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ns.recv(1)\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with subprocess.Popen([sys.executable, program, path]) as client, closing(listener.accept()[0]):
            yield request.param, path
            client.kill()


async def test_why_silent_does_not_advise_to_end_a_command_of_ours(held):
    name, path = held
    found = await why_silent(path)
    assert f" {name}, user " in found.fact
    way = "wait until that command ends (a backup holds" if name == "qmpsnap" else "end that client; "
    assert found.hint.startswith(way)
    assert "-qmp unix:PATH,server=on,wait=off" in found.hint


def test_why_silent_does_not_advise_to_wait_for_the_process_that_asks(tmp_path):
    path, program = str(tmp_path / "qmp"), tmp_path / "qmpsnap"
    program.write_text(
        "import asyncio, socket, sys\n"
        "from qmpsnap.run.session.silence import why_silent\n"
        "with socket.socket(socket.AF_UNIX) as client:\n"
        "    client.connect(sys.argv[1])\n"
        "    input()\n"
        "    print(asyncio.run(why_silent(sys.argv[1])).hint)\n"
    )
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        asks = [sys.executable, program, path]
        with (
            subprocess.Popen(asks, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as asking,
            closing(listener.accept()[0]),
        ):
            hint, _ = asking.communicate("\n")
    assert hint.startswith("end that client; ")


async def test_why_silent_names_no_client_of_another_host_s_port():
    """A local service has the same port, and a client; the monitor is at another address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))), closing(listener.accept()[0]):
            assert await why_silent(("192.0.2.1", port)) == Silence()
            assert await why_silent(("other.example", port)) == Silence()
            assert await why_silent(("other.example", port), peer=("192.0.2.1", port)) == Silence()
            found = await why_silent(("this.example", port), peer=("127.0.0.1", port))
    assert found.fact == ": this process itself is connected to it"


@pytest.fixture
def stopped():
    """The id of a process that is stopped."""
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        yield child.pid
        child.kill()


async def test_why_silent_tells_that_qemu_is_stopped(stopped, tmp_path):
    found = await why_silent(str(tmp_path / "none"), stopped)
    assert found.fact == f": QEMU (process {stopped}) is stopped"
    assert found.hint == f"let it continue: kill -CONT {stopped}"
