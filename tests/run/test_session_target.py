from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import qmpsnap

if TYPE_CHECKING:
    from qmpsnap.testing.jobs import ScriptedJobs
    from qmpsnap.testing.server import QmpServer

pytestmark = pytest.mark.usefixtures("nothing_stays")


async def test_repr_of_a_machine_tells_name_address_process_and_connection(
    server: QmpServer, jobs: ScriptedJobs
) -> None:
    assert jobs.jobs() == []
    async with qmpsnap.connect(server.path) as vm:
        assert repr(vm) == f"<VM '{server.path}', pid {os.getpid()}, connected>"
    assert repr(vm) == f"<VM '{server.path}', pid {os.getpid()}, lost: the session was closed>"
    async with qmpsnap.connect(server.path, name="vm1") as vm:
        server.hang_up()
        reason = await vm.wait_lost()
        assert repr(vm) == f"<VM 'vm1' at '{server.path}', pid {os.getpid()}, lost: {reason}>"
