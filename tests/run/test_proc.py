"""What /proc tells of processes; the tests look at themselves and at their children."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

from qmpsnap.model.host_process import HostProcess
from qmpsnap.run import proc

WAITS = [sys.executable, "-S", "-c", "print(flush=True); input()"]
NOBODY = 1 << 30
"""No process and no user has this id."""


def test_process_is_described_by_its_command_line_user_and_environment():
    with subprocess.Popen(WAITS, stdin=PIPE, stdout=PIPE, env={"PWD": "/nowhere", "PW": "x"}) as child:
        user = pwd.getpwuid(os.geteuid()).pw_name
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in proc.pids()
        assert proc.arguments(child.pid) == (*WAITS,)
        assert proc.host_process(child.pid) == HostProcess(child.pid, Path(sys.executable).name, user)
        assert [proc.environment(child.pid, name) for name in ("PWD", "HOME")] == ["/nowhere", ""]
        assert not proc.is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert proc.is_stopped(child.pid)
        child.kill()


def test_user_name_is_the_number_of_a_user_without_a_name():
    assert proc.user_name(os.geteuid()) == pwd.getpwuid(os.geteuid()).pw_name
    assert proc.user_name(NOBODY) == str(NOBODY)


def test_process_that_is_gone_is_not_known():
    assert proc.host_process(NOBODY) == HostProcess(NOBODY)
    assert (proc.arguments(NOBODY), proc.environment(NOBODY, "PWD"), proc.sockets(NOBODY)) == ((), "", None)
    assert not proc.is_stopped(NOBODY)


def test_socket_owners_finds_each_process_that_has_a_socket_open():
    with socket.socket(socket.AF_UNIX) as mine, socket.socket(socket.AF_UNIX) as shared:
        inodes = {os.fstat(each.fileno()).st_ino: each for each in (mine, shared)}
        with subprocess.Popen(WAITS, pass_fds=[shared.fileno()], stdin=PIPE, stdout=PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            found = proc.socket_owners(inodes)
            child.communicate(b"\n")
        assert {inodes[inode]: set(owners) for inode, owners in found.items()} == {
            mine: {os.getpid()},
            shared: {os.getpid(), child.pid},
        }
        assert (proc.sockets(os.getpid()) or {})[mine.fileno()] == os.fstat(mine.fileno()).st_ino
    assert proc.socket_owners(()) == {}
