"""A machine that several tests use, one after the other."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from qmpsnap.testing.server import Return, Wait, serve
from qmpsnap.testing.shared.machine import SharedMachine

_EMPTY = ("query-block", "query-named-block-nodes", "query-blockstats", "query-block-jobs", "query-jobs")


async def test_machine_whose_qemu_hangs_is_booted_anew_after_the_limit_of_a_boot(tmp_path):
    never, starts = asyncio.Event(), []

    @asynccontextmanager
    async def start(wanted):
        starts.append(wanted)
        async with serve(wanted.monitors[0]) as qemu:
            for command in _EMPTY:
                qemu.answer(command, Return([]))
            qemu.answer("query-status", Wait(never))
            yield

    async def ready(*_):
        pass

    machine = SharedMachine(start, [], tmp_path, ready=ready, reset="none", boot_limit=0.2)
    async with machine:
        await machine.begin(test="first")
        await machine.begin(test="second")
    assert len(starts) == 2
    assert machine.account.again == ["second: QEMU was not reset in 0.2 s"]
