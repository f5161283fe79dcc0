"""`qmpsnap ps`, and -s with the name of a machine; the machines are Python programs that listen."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click
import click.shell_completion

from qmpsnap.cli import ps
from qmpsnap.cli.app import MachineOption, cli
from qmpsnap.cli.output import table
from qmpsnap.model.host_process import HostProcess
from qmpsnap.model.running_qemu import OpenDisk, QmpSocket, RunningQemu, SocketState
from tests.run.test_running_qemus import process

CLIENT = HostProcess(991, "libvirtd", "root")
NAME = f"named-{os.getpid()}"  # of this run of the tests
FREE = QmpSocket("/run/vm1/qmp.sock", "unix:qmp.sock", SocketState.FREE)


def lines(*machines):
    return table(ps._HEADER, map(ps._row, machines), right=("PID",), indent="")


def test_ps_shows_each_machine_with_its_monitors_clients_and_disks():
    held = QmpSocket("/run/b", "unix:b", SocketState.HELD, (CLIENT,), ("10.0.0.2:5000",))
    unseen = QmpSocket("/run/c", "unix:c", SocketState.HELD)
    lost = QmpSocket("", "unix:q", SocketState.FREE, why="no path leads to it")
    stdio = QmpSocket("", "stdio", SocketState.UNREACHABLE, why="it is not a socket that listens")
    here = str(Path.cwd() / "a.qcow2")
    disks = (OpenDisk("vda", (here, "/b")), OpenDisk("", ("/x.raw",)), OpenDisk("vdb", ("/y",), "nbd:h:1"))
    machines = [
        RunningQemu(
            HostProcess(7, "qemu-kvm", "bob"), "vm1", sockets=(held, unseen, FREE, stdio), disks=disks
        ),
        RunningQemu(HostProcess(11, "qemu-storage-daemon", "amy"), daemon=True),
        RunningQemu(HostProcess(12, "qemu-kvm", "amy"), "evil\x1b[31m\n", sockets=(held,), disks=()),
        RunningQemu(HostProcess(13, "qemu-kvm", "amy"), "vm2", sockets=(lost,), disks=()),
    ]
    assert lines(*machines) == [
        "NAME              PID  USER  STATE  MONITOR",
        "vm1                 7  bob   free   /run/vm1/qmp.sock",
        "    also /run/b: held by process 991 (libvirtd, user root) and 10.0.0.2:5000",
        "    also /run/c: held by a process that we may not see",
        "    also stdio: unreachable: it is not a socket that listens",
        "    vda: a.qcow2 (2 layers)",
        "    /x.raw (1 layer)",
        "    vdb: /y (1 layer, on nbd:h:1)",
        "(storage daemon)   11  amy          no QMP monitor in its arguments",
        "    we may not look at its images",
        "evil\\x1b[31m\\n     12  amy   held   /run/b",
        "    held by process 991 (libvirtd, user root) and 10.0.0.2:5000",
        "vm2                13  amy   free   unix:q",
        "    free: no path leads to it",
    ]
    assert all(len(line) <= 80 for line in lines(*machines))


def test_ps_lists_what_runs_as_text_and_as_json(qmpsnap, tmp_path):
    path = str(tmp_path / "q")
    with process(path, "-name", "ps-x", "-qmp", f"unix:{path},server=on") as child:
        assert re.search(rf"^ps-x +{child.pid} ", qmpsnap("ps").out, re.MULTILINE)
        machines = qmpsnap("ps", "--json").json["machines"]
    (found,) = [each for each in machines if each["process"]["pid"] == child.pid]
    assert (found["name"], found["disks"], found["daemon"]) == ("ps-x", [], False)
    assert [(each["address"], each["state"]) for each in found["sockets"]] == [(path, "free")]
    assert isinstance(qmpsnap("ps").code, int)


def test_socket_may_be_a_machine_but_a_path_goes_before(qmpsnap, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with process("", "-name", "s", "-qmp", "unix:/none,server=on"):
        assert qmpsnap("-s", "s", "chain").out == "no disks\n"
    path = str(tmp_path / "held")
    with process(path, "-name", NAME, "-qmp", f"unix:{path},server=on") as child:
        child.stdin.write(b"\n\n")  # it takes a client, and ends
        child.stdin.flush()
        ended = qmpsnap("-s", NAME, "chain")
    assert (ended.code, f"{path} closed the connection" in ended.err) == (4, True)
    ended = qmpsnap("-s", "nobody-x", "chain")
    assert (ended.code, "qmpsnap ps" in ended.err) == (4, True)
    ended = qmpsnap("-s", "./nobody-x", "chain")
    assert (ended.code, "No such file" in ended.err) == (4, True)


def test_names_of_machines_complete_after_s(tmp_path):
    path = str(tmp_path / "q")
    option, context = MachineOption(), click.Context(cli)
    with process(path, "-name", NAME, "-qmp", f"unix:{path},server=on"):
        items = option.shell_complete(context, cli.params[0], NAME[:-1])
    assert [(item.type, item.value) for item in items] == [("file", NAME[:-1]), ("plain", NAME)]
    assert [item.type for item in option.shell_complete(context, cli.params[0], "/run/")] == ["file"]
