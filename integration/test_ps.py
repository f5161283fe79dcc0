"""`qmpsnap ps`, machines by name, and who is in the way, on real QEMUs."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

import qmpsnap
from integration.cli import Cli
from integration.known_images import QEMUS
from integration.machines import CHEAP, blockdev, drive, wait_for
from qmpsnap.errors import CommandFailed, ConnectFailed, ImageInUse
from qmpsnap.model.running_qemu import OpenDisk, SocketState

NAME = "evil\x1b]0;title\x07\n2,,2"


async def listed(pid):
    (found,) = [each for each in await qmpsnap.list_machines() if each.pid == pid]
    return found


async def test_machine_is_listed_with_its_monitors_its_clients_and_its_chains(machine, images, tmp_path):
    chain = images("base <- s1 <- s2").files
    raw = tmp_path / "d.raw"
    raw.write_bytes(bytes(1 << 20))
    abstract = f"qmpsnap-{os.getpid()}-{tmp_path.name}"[:60]
    with socket.socket(socket.AF_UNIX) as handed:
        handed.bind(str(tmp_path / "handed"))
        handed.listen(1)
        line = [
            "-name", f"guest={NAME},process=bash",
            "-chardev", "socket,id=r,path=rel,server=on,wait=off", "-mon", "r,mode=control",
            "-qmp", f"unix:{abstract},abstract=on,server=on,wait=off",
            "-chardev", f"socket,id=h,fd={handed.fileno()},server=on,wait=off", "-mon", "h,mode=control",
            "-monitor", "unix:hmp,server=on,wait=off", "-qmp", "tcp:localhost:0,server=on,wait=off",
            *blockdev("vda", chain[-1]), *drive("vdb", raw, "raw"),
        ]  # fmt: skip
        with machine(*line, cwd=tmp_path, pass_fds=[handed.fileno()]) as qemu:
            pid, name = qemu.process.pid, NAME.replace(",,", ",")
            found = await listed(pid)
            assert (found.name, found.process.program, found.daemon) == (name, "qemu-system-x86_64", False)
            assert found.disks == (OpenDisk("vda", (*reversed(chain),)), OpenDisk("vdb", (str(raw),)))
            own, path = [each for each in found.sockets if each.text.startswith(("fd", f"unix:{tmp_path}"))][
                1:
            ]
            assert (own.address, own.state, own.clients[0].pid) == ("", SocketState.HELD, os.getpid())
            assert (path.address, path.state) == (qemu.socket, SocketState.FREE)
            addresses = [each.address for each in found.sockets]
            assert addresses[:3] == [str(tmp_path / "rel"), f"@{abstract}", str(tmp_path / "handed")]
            assert not any("hmp" in each.text for each in found.sockets)
            async with qmpsnap.connect(f"@{abstract}") as vm:
                await vm.snapshot("s3", disks=["vda"], files={"vda": str(tmp_path / "s3.qcow2")})
                first, second = (await listed(pid)).sockets[:2]
                assert (first.state, second.state) == (SocketState.FREE, SocketState.HELD)
            disks = (await listed(pid)).disks
            assert OpenDisk("vda", (str(tmp_path / "s3.qcow2"), *reversed(chain))) in disks
            if qemu.qemu is QEMUS[0]:
                cli = Cli(qemu)
                assert cli("-s", pid, "status").out.startswith("prelaunch")
                shown = cli("ps").out
                assert "\x1b" not in shown
                assert re.search(rf"evil\\x1b\]0;title\\x07\\n2,2 +{pid} ", shown)
            with pytest.raises(
                ImageInUse, match=rf"process {pid} \(qemu-system-x86_64, user \w+\) has it"
            ) as caught:
                async with qmpsnap.offline(vda=tmp_path / "s3.qcow2"):
                    pass
            assert caught.value.pid == pid


@pytest.mark.parametrize("qemu", QEMUS[:1], ids=["oldest"])
async def test_who_is_in_the_way_is_named(qemu, machine, tmp_path):
    """The holder of a lock, the client of a monitor, and whoever stopped QEMU."""
    file = qemu.create(tmp_path / "a.qcow2")
    with machine(*blockdev("vda", file)) as first, machine() as second:
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(first.socket)
            client.recv(1)
            with pytest.raises(ConnectFailed, match=r"no greeting .* this process itself is connected"):
                async with qmpsnap.connect(first.socket, greeting_limit=0.1):
                    pass
        first.freeze()
        with pytest.raises(ConnectFailed, match=rf"QEMU \(process {first.process.pid}\) is stopped"):
            async with qmpsnap.connect(first.socket, greeting_limit=0.1):
                pass
        first.process.send_signal(signal.SIGCONT)
        async with qmpsnap.connect(second.socket) as vm:
            arguments = {"driver": "file", "node-name": "n", "filename": file}
            with pytest.raises(CommandFailed, match="lock") as caught:
                await vm.execute("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": arguments})
        held = rf"process {first.process.pid} \(.*\) has {file} open; repeat the command when that has ended"
        assert re.fullmatch(held, caught.value.hint)


CONFIGURATION = """[chardev "c"]
  backend = "socket"
  path = "in-file"
  server = "on"
  wait = "off"
[mon "m"]
  mode = "control"
  chardev = "c"
[name]
  guest = "of a file"
[drive "vda"]
  file = "a.qcow2"
  if = "none"
  format = "qcow2"
"""


async def test_monitor_in_a_file_of_readconfig_is_found(machine, qemu, tmp_path):
    qemu.create(tmp_path / "a.qcow2")
    (tmp_path / "vm.cfg").write_text(CONFIGURATION)
    with machine("-readconfig", "vm.cfg", cwd=tmp_path) as running:
        found = await listed(running.process.pid)
        assert found.name == "of a file"
        assert found.disks == (OpenDisk("vda", (str(tmp_path / "a.qcow2"),)),)
        (monitor,) = [each for each in found.sockets if each.text == "unix:in-file"]
        assert (monitor.address, monitor.state) == (str(tmp_path / "in-file"), SocketState.FREE)
        async with qmpsnap.connect(monitor.address) as vm:
            assert (await vm.status()).state == "prelaunch"


async def test_daemon_that_knows_only_its_pidfile_of_where_it_was_started(qemu, tmp_path):
    """No shell has said it in PWD; of the matrix, only a QEMU that is no script starts so."""
    bare = {key: value for key, value in os.environ.items() if key != "PWD"}
    line = [qemu.system, *CHEAP, "-daemonize", "-pidfile", "p", "-qmp", "unix:q,server=on,wait=off"]
    subprocess.run(line, cwd=tmp_path, env=bare, check=True, capture_output=True)
    pid = int((tmp_path / "p").read_text())
    try:
        (monitor,) = (await listed(pid)).sockets
        assert (monitor.address, monitor.state) == (str(tmp_path / "q"), SocketState.FREE)
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}/exe").exists())


@pytest.mark.parametrize("qemu", QEMUS[-1:], ids=["newest"])
async def test_daemons_and_other_namespaces(qemu, tmp_path):
    """A QEMU that has daemonized, one that sees other file systems and networks, and a storage daemon."""
    image, hidden = qemu.create(tmp_path / "a.qcow2"), tmp_path / "hidden"
    hidden.mkdir()
    started = [qemu.system, *CHEAP, "-daemonize", "-pidfile"]
    plain = [*started, "plain", "-qmp", "unix:p,server=on,wait=off"]
    inside = f'mount -t tmpfs none {hidden} && exec "$@" -qmp unix:{hidden}/q,server=on,wait=off'
    elsewhere = ["unshare", "--mount", "--net", "sh", "-c", inside, "sh", *started, "inside"]
    block = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": image}}
    daemon = [
        f"{qemu.directory}/qemu-storage-daemon", "--blockdev", json.dumps(block), "--daemonize",
        "--pidfile", "block", "--chardev", "socket,id=c,path=d,server=on,wait=off", "--monitor", "c",
    ]  # fmt: skip
    shells = {**os.environ, "PWD": str(tmp_path)}  # as a shell does; where QEMU was started, it has forgotten
    pids = {}
    try:
        for name, line in (("plain", plain), ("inside", elsewhere), ("block", daemon)):
            done = subprocess.run(line, cwd=tmp_path, env=shells, check=False, capture_output=True, text=True)
            if name == "inside" and done.returncode:
                pytest.skip(f"only root can make namespaces: {done.stderr}")
            pids[name] = int((tmp_path / name).read_text())
        (monitor,) = (await listed(pids["plain"])).sockets
        assert (monitor.address, monitor.state) == (str(tmp_path / "p"), SocketState.FREE)
        (monitor,) = (await listed(pids["inside"])).sockets
        assert monitor.address == f"/proc/{pids['inside']}/root{hidden}/q"
        async with qmpsnap.connect(await qmpsnap.address_of(pids["inside"])) as vm:
            assert (await vm.status()).state == "prelaunch"
            (monitor,) = (await listed(pids["inside"])).sockets
            assert (monitor.state, monitor.clients[0].pid) == (SocketState.HELD, os.getpid())
        block_daemon = await listed(pids["block"])
        assert (block_daemon.daemon, block_daemon.disks) == (True, (OpenDisk("", (image,)),))
        assert [each.address for each in block_daemon.sockets] == [str(tmp_path / "d")]
        with pytest.raises(ConnectFailed, match="is a storage daemon"):
            await qmpsnap.address_of(pids["block"])
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists())
