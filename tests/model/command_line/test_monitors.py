"""Where the QMP monitors of a command line are, as QEMU 7.2, 10.0 and 11.1 were seen to read it."""

from __future__ import annotations

from qmpsnap.model.command_line.monitors import Endpoint, machine_name, qmp_endpoints
from qmpsnap.model.command_line.options import split
from tests.each import each


def options(line):
    return split(["qemu-system-x86_64", *line])[1]


SOCKET = "socket,id=c,path=/c,server=on"


def unix(path, text=""):
    return Endpoint("unix", text or f"unix:{path}", path=path)


def tcp(host, port):
    return Endpoint("tcp", f"tcp:{host}:{port}", host=host, port=port)


FD = Endpoint("fd", "fd 22", number=22)


@each(
    ("line", "expected"),
    [
        ([], []),
        (["-qmp", "unix:/run/a,server=on,wait=off"], [unix("/run/a")]),
        (["-qmp", "unix:a.sock,server,nowait"], [unix("a.sock")]),
        (["--qmp-pretty", "unix:path=/a,server=on"], [unix("/a", "unix:path=/a")]),
        (["-qmp", "unix:/a,,b,server=on"], [unix("/a,b", "unix:/a")]),
        (["-qmp", "unix:/a"], [Endpoint("none", "unix:/a")]),
        (["-qmp", "unix:/a,server=off"], [Endpoint("none", "unix:/a")]),
        (["-qmp", "unix:x,abstract=on,server=on"], [Endpoint("abstract", "@x", path="x")]),
        (["-qmp", "tcp:localhost:44,server=on,wait=off"], [tcp("localhost", 44)]),
        (["-qmp", "tcp::44,server,nowait"], [tcp("", 44)]),
        (["-qmp", "tcp:h:44"], [Endpoint("none", "tcp:h:44")]),
        (["-qmp", "tcp:h:44,server=on,telnet=on"], [Endpoint("none", "tcp:h:44")]),
        (["-qmp", "telnet:h:44,server=on"], [Endpoint("none", "telnet:h:44")]),
        (["-qmp", "stdio"], [Endpoint("none", "stdio")]),
        (["-qmp", "none"], []),
        (["-monitor", "unix:/hmp,server=on"], []),
        (["-chardev", SOCKET, "-mon", "chardev=c,mode=control"], [unix("/c")]),
        (["-mon", "c,mode=control", "-chardev", "socket,path=/c,id=c,server=on,wait=off"], [unix("/c")]),
        (["-chardev", SOCKET, "-mon", "chardev=c"], []),
        (["-chardev", SOCKET, "-mon", "c,mode=readline"], []),
        (["-chardev", SOCKET, "-qmp", "chardev:c"], [unix("/c")]),
        (["-chardev", "socket,id=c,fd=22,server=on", "-mon", "c,mode=control"], [FD]),
        (["-chardev", "socket,id=c,fd=name", "-mon", "c,mode=control"], [Endpoint("fd", "fd name")]),
        (["-chardev", "socket,id=c,host=::1,port=5,server=on", "-qmp", "chardev:c"],
         [tcp("::1", 5)]),
        (["-chardev", "socket,id=c,host=h,port=5,server=on,tls-creds=t", "-qmp", "chardev:c"],
         [Endpoint("none", "tcp:h:5")]),
        (["-chardev", "pty,id=c", "-qmp", "chardev:c"], [Endpoint("none", "pty")]),
        (["-qmp", "chardev:gone"], [Endpoint("none", "chardev:gone")]),
        (["-chardev", SOCKET, "-object", "monitor-qmp,id=m,chardev=c"], [unix("/c")]),
        (["-chardev", SOCKET, "-object", '{"qom-type": "monitor-qmp", "chardev": "c"}'],
         [unix("/c")]),
        (["-object", "{", "-object", "monitor-hmp,chardev=c"], []),
        (["-qmp", "unix:/a,server=on", "-qmp", "unix:/b,server=on"], [unix("/a"), unix("/b")]),
        (["-name", "vm", "-qmp"], []),
    ],
)  # fmt: skip
def test_qmp_endpoints_are_those_of_the_command_line(line, expected):
    assert qmp_endpoints(options(line)) == tuple(expected)


@each("monitor", ["c", "chardev=c", "id=x,chardev=c", "c,mode=control", '{"chardev": "c"}'])
def test_qmp_endpoints_of_a_storage_daemon_are_its_monitors(monitor):
    line = ["--chardev", "socket,id=c,path=/c,server=on,wait=off", "--monitor", monitor]
    assert qmp_endpoints(options(line), daemon=True) == (unix("/c"),)
    assert qmp_endpoints(options(line)) == ()


@each(
    ("line", "name"),
    [
        ([], ""),
        (["-name", "vm1"], "vm1"),
        (["-name", "guest=vm 1,debug-threads=on"], "vm 1"),
        (["-name", "vm,,1,process=bash"], "vm,1"),
        (["-name", "process=bash"], ""),
        (["-name", "a", "-name", "b"], "b"),
        (["-name"], ""),
    ],
)
def test_machine_name_is_that_of_the_guest(line, name):
    assert machine_name(options(line)) == name
