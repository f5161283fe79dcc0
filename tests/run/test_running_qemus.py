"""Which processes are QEMUs; here they are Python programs that listen as QEMU does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from subprocess import PIPE

from qmpsnap.model.running_qemu import SocketState
from qmpsnap.run.running_qemus import running_qemus

LISTENS = """
import os, socket, sys
if sys.argv[1]:
    s = socket.socket(socket.AF_UNIX)
    s.bind(sys.argv[1].replace("@", "\\0"))
    s.listen(1)
print(flush=True), input()
if sys.argv[1]:
    c = s.accept(), print(flush=True), input()
"""


@contextmanager
def process(name, *arguments, **options):
    """A process of that command line that listens at a name; a line on its stdin makes it take a client."""
    words = [sys.executable, "-S", "-c", LISTENS, name, *arguments]
    with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, **options) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


def seen(child):
    found = [each for each in running_qemus() if each.pid == child.pid]
    return found[0] if found else None


def test_process_that_listens_where_its_command_line_says_is_a_qemu(tmp_path):
    (tmp_path / "d").mkdir()
    line = [
        "-name",
        "vm\n\x1b[31m",
        "-qmp",
        "unix:qmp,server=on",
        "-qmp",
        "stdio",
        "-qmp",
        "unix:/gone,server=on",
    ]
    with process("qmp", *line, cwd=tmp_path / "d") as child:
        qemu = seen(child)
        assert (qemu.name, qemu.daemon, qemu.disks) == ("vm\n\x1b[31m", False, ())
        first, second, third = qemu.sockets
        path = str(tmp_path / "d" / "qmp")
        assert (first.address, first.state, first.clients, first.why) == (path, SocketState.FREE, (), "")
        assert (second.address, second.text, second.state) == ("", "stdio", SocketState.UNREACHABLE)
        assert (third.address, third.why) == ("", "QEMU does not listen there")
        (tmp_path / "d" / "qmp").rename(tmp_path / "d" / "moved")
        (moved, *_) = seen(child).sockets
        assert (moved.address, moved.state) == ("", SocketState.FREE)
        assert "moved, removed or replaced" in moved.why


def test_process_that_names_a_monitor_and_does_not_listen_is_none(tmp_path):
    path = str(tmp_path / "qmp")
    with (
        process(path, "-x") as other,
        process("", "/usr/bin/qemu-system-x86_64", "-qmp", f"unix:{path},server=on") as child,
    ):
        assert seen(other) is None
        assert seen(child) is None


def test_client_of_a_monitor_is_named_once_it_is_served(tmp_path):
    path = str(tmp_path / "qmp")
    with process(path, "-qmp", f"unix:{path},server=on") as child, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        assert [each.state for each in seen(child).sockets] == [SocketState.FREE]
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        (monitor,) = seen(child).sockets
        assert (monitor.address, monitor.state) == (path, SocketState.HELD)
        assert [each.pid for each in monitor.clients] == [os.getpid()]


def test_abstract_monitor_is_addressed_by_its_name():
    name = f"qmpsnap-test-{os.getpid()}"
    with process(f"@{name}", "-qmp", f"unix:{name},server=on,abstract=on") as child:
        (monitor,) = seen(child).sockets
    assert (monitor.address, monitor.state) == (f"@{name}", SocketState.FREE)
