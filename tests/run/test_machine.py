from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import CommandFailed, LinkLost, Malformed
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.machine import Status
from qmpsnap.model.parse_machine import BUILD_QUERIES, MACHINE_QUERIES, parse_build, parse_machine
from qmpsnap.run import session as sessions
from qmpsnap.run.descriptors import identity
from qmpsnap.run.guest import LiveGuest
from qmpsnap.run.jobs import JobMonitor
from qmpsnap.run.machine import read_build, read_machine, read_status, run_state
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.server import Fail, Hangup, Return
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpsnap.model.machine import Machine
    from qmpsnap.testing.server import QmpServer

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_stays")]

DATA = Path(__file__).parent.parent / "model" / "data"
TWO = graph(vda="base <- s1*", vdb="data*")

QUERIES = (*MACHINE_QUERIES, *BUILD_QUERIES)


def said() -> list[Any]:
    answers: list[Any] = json.loads((DATA / "machine-7.json").read_text())["answers"]
    return answers


def answer(
    server: QmpServer, answers: list[Any], objects: Mapping[tuple[str, str], object] = Frozen()
) -> None:
    """Let the server answer as that QEMU did; vdb has no device under its path.

    Args:
        server: The server.
        answers: What QEMU answered.
        objects: Further properties of objects, each by the object's path and its name.
    """
    by_path: dict[tuple[str, str], object] = {
        ("/machine/unattached/device[0]", "type"): "qemu64-x86_64-cpu",
        ("/machine/peripheral/vda/virtio-backend", "type"): "virtio-blk-device",
        **objects,
    }
    lists: dict[str, object] = {}
    for (command, arguments), value in zip(QUERIES, answers, strict=True):
        if command == "qom-get":
            by_path[str(arguments["path"]), str(arguments["property"])] = value
        elif command == "qom-list":
            lists[str(arguments["path"])] = value
        else:
            server.answer(command, Return(value))
    server.compute("qom-list", lambda arguments: lists[arguments["path"]])  # type: ignore[index]

    def get(arguments: dict[str, object]) -> object:
        return by_path.get((str(arguments["path"]), str(arguments["property"])), "")

    server.compute("qom-get", get)


async def machine_of(server: QmpServer) -> Machine:
    async with sessions.connect(server.path) as session:
        return await read_machine(session, TWO, await read_build(session))


async def test_read_machine_asks_for_all_of_it_and_for_each_disks_device(server: QmpServer) -> None:
    answer(server, said())
    async with sessions.connect(server.path) as session:
        machine = await read_machine(session, TWO, await read_build(session))
        process = identity(session.peer_pid)
    assert machine == parse_machine(
        said()[: len(MACHINE_QUERIES)],
        {"vda": "virtio-blk-device"},
        TWO,
        build=parse_build(said()[len(MACHINE_QUERIES) :], "qemu64-x86_64-cpu"),
        passes_files=True,
        process=process,
    )
    assert process != ""


@pytest.mark.parametrize("cpus", [[{}], [7], {"x": 1}, None])
async def test_read_machine_is_malformed_when_cpus_have_another_shape(
    server: QmpServer, cpus: object
) -> None:
    answer(server, said())
    server.answer("query-cpus-fast", Return(cpus))
    with pytest.raises(Malformed):
        await machine_of(server)


@each(
    ("backend", "uses_path", "name"),
    [
        ("/objects/pc.ram", False, "pc.ram"),
        ("/objects/pc.ram", True, "/objects/pc.ram"),
        ("/objects/mem", False, "mem"),
        ("", None, ""),  # in the objects of NUMA nodes
    ],
)
async def test_read_machine_tells_what_the_memory_is_called_in_a_state(
    server: QmpServer, backend: str, name: str, *, uses_path: bool | None
) -> None:
    found = {
        ("/machine", "memory-backend"): backend,
        (backend, "x-use-canonical-path-for-ramblock-id"): uses_path,
    }
    answer(server, said(), found)
    assert (await machine_of(server)).fingerprint.ram == name


async def test_read_machine_takes_one_without_a_cpu(server: QmpServer) -> None:
    answer(server, said())
    server.answer("query-cpus-fast", Return([]))  # as with -M none
    assert (await machine_of(server)).fingerprint.cpus == ()


async def test_read_machine_ends_when_the_link_is_lost(server: QmpServer) -> None:
    answer(server, said())
    server.answer("query-version", Hangup())
    with pytest.raises(LinkLost):
        await machine_of(server)


async def test_guest_asks_once_for_what_cannot_change(server: QmpServer) -> None:
    answer(server, said())
    async with sessions.connect(server.path) as session:
        guest = LiveGuest(session, None, None)  # type: ignore[arg-type]
        first, second = [await guest.machine(TWO) for _ in range(2)]
    assert first == second
    counts = {name: server.commands.count(name) for name in ("query-version", "query-kvm", "query-status")}
    assert counts == {"query-version": 1, "query-kvm": 1, "query-status": 2}


async def test_machine_that_is_not_created_yet_is_in_preconfig_and_has_no_jobs(server: QmpServer) -> None:
    early = "is permitted only after machine initialization has completed"
    server.answer("query-status", Return({"status": "prelaunch", "running": False}))
    server.answer("query-block-jobs", Return([]))
    for command in ("query-migrate", "query-jobs"):
        server.answer(command, Fail(f"The command '{command}' {early}"))
    async with sessions.connect(server.path) as session:
        assert await read_status(session) == Status("preconfig", running=False)
        async with JobMonitor(session) as monitor:
            assert monitor.found == ()
        for command in ("query-migrate", "query-jobs"):
            server.answer(command, Fail("no"))
        with pytest.raises(CommandFailed, match="refused 'query-migrate': no"):
            await read_status(session)
        with pytest.raises(CommandFailed, match="refused 'query-jobs': no"):
            await JobMonitor(session).jobs()


async def test_run_state_is_qemus_word(server: QmpServer) -> None:
    server.answer("query-status", Return({"status": "postmigrate", "running": False}))
    async with sessions.connect(server.path) as session:
        assert await run_state(session) == "postmigrate"
        server.answer("query-status", Return([]))
        with pytest.raises(Malformed):
            await run_state(session)
