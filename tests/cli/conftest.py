"""What the command line's tests share: the command, run in this process, and a scripted QEMU."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from anyio.from_thread import start_blocking_portal

from qmpsnap.cli import runner
from qmpsnap.cli.main import run
from qmpsnap.plan.intent import Intent
from qmpsnap.testing.server import Return, serve

GIB = 1 << 30


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on stdout."""
        (line,) = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def qmpsnap(capsys):
    """Run a command line in this process."""

    def call(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def server(tmp_path):
    """A scripted QMP server in a thread of its own; without disks until a test says otherwise."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve(str(tmp_path / "s"))) as scripted,
    ):
        disks(scripted)
        for command in ("query-jobs", "query-block-jobs", "query-commands", "query-qmp-schema"):
            scripted.answer(command, Return([]))
        stands(scripted)
        yield scripted


@pytest.fixture
def machine(qmpsnap, server):
    """Run a command line against the scripted server."""
    return lambda *words: qmpsnap("-s", server.path, *words)


@pytest.fixture
def intent(qmpsnap, monkeypatch):
    """What a command line asks for; nothing is connected to."""
    asked: list[object] = []

    def no_run(work):
        cells = [cell.cell_contents for cell in work.__closure__]
        asked.extend(one for one in cells if isinstance(one, Intent))
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", no_run)

    def call(*words):
        assert qmpsnap(*words).code == 130
        return asked.pop()

    return call


@pytest.fixture
def printed(qmpsnap, monkeypatch):
    """What a command line prints of a result; nothing is connected to."""

    def call(done, *words):
        monkeypatch.setattr(runner, "run", lambda _: done)
        return qmpsnap("-s", "/old", *words)

    return call


def stands(server, status="running", migration="none"):
    """Let the server's machine stand so, without devices."""
    version = {"major": 7, "minor": 2, "micro": 0}
    answers = {
        "query-status": {"status": status, "running": status == "running"},
        "query-migrate": {} if migration == "none" else {"status": migration},
        "query-migrate-capabilities": [],
        "query-migrate-parameters": {"max-bandwidth": 1 << 27},
        "query-version": {"qemu": version, "package": ""},
        "query-memory-size-summary": {"base-memory": GIB, "plugged-memory": 0},
        "query-cpus-fast": [{"qom-path": "/machine/unattached/device[0]"}],
        "query-kvm": {"enabled": True, "present": True},
        "query-block-exports": [],
        "query-iothreads": [],
        "qom-list": [],
    }
    for command, answer in answers.items():
        server.answer(command, Return(answer))
    properties = {
        "type": "pc-q35-7.2-machine",
        "memory-backend": "/objects/pc.ram",
        "x-use-canonical-path-for-ramblock-id": False,
    }
    server.compute("qom-get", lambda arguments: properties[arguments["property"]])


def disks(server, *, inside=(), io_status="ok", **chains):
    """Let the server have these disks, each with its files, active first; none: an empty drive.

    `inside`: internal snapshots of active layers, each as (disk, id, name, bytes of VM state).
    `io_status`: of each disk; QAPI: BlockDeviceIoStatus.
    """
    block, stats, nodes = [], [], []
    for disk, files in chains.items():
        place = {"device": "", "qdev": f"/machine/peripheral/{disk}/virtio-backend"}
        row = {**place, "type": "unknown", "locked": False, "removable": not files}
        row["io-status"] = io_status
        below = None
        for index, file in reversed(list(enumerate(files))):
            node, image = f"{disk}-{index}", {"filename": file, "format": "qcow2", "virtual-size": GIB}
            image |= {"actual-size": 1 << 20, "cluster-size": 65536}
            if index + 1 < len(files):
                image |= {"backing-filename": files[index + 1], "backing-filename-format": "qcow2"}
            image["snapshots"] = [
                {"id": number, "name": name, "vm-state-size": size, "date-sec": 1714564800 + int(number),
                 "date-nsec": 0, "vm-clock-sec": 0, "vm-clock-nsec": 0}
                for where, number, name, size in inside
                if where == disk and index == 0
            ]  # fmt: skip
            facts = {"ro": index > 0, "drv": "qcow2", "encrypted": False, "iops": 0}
            nodes.append({**facts, "node-name": node, "file": file, "image": image})
            protocol = {**facts, "drv": "file", "node-name": f"{node}-file", "file": file}
            nodes.append({**protocol, "image": {"filename": file, "format": "file", "virtual-size": 1 << 20}})
            parent = {"node-name": f"{node}-file", "stats": {}}
            below = {
                "node-name": node,
                "stats": {},
                "parent": parent,
                **({"backing": below} if below else {}),
            }
        if below:
            row["inserted"] = {**nodes[-2], "node-name": f"{disk}-0"}
        block.append(row)
        stats.append({**place, "stats": {}, **(below or {})})
    server.answer("query-block", Return(block))
    server.answer("query-blockstats", Return(stats))
    server.answer("query-named-block-nodes", Return(nodes))
