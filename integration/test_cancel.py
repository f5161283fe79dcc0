"""An operation that is cancelled, at every site of it: what was sent is undone or brought to its end.

A site is a line that awaits, by the way that led there and the kind of step (`harness.Sites`). With --all
every single suspension is one, however often the same line comes.
"""

from __future__ import annotations

import asyncio

import pytest

from integration.cases import CASES
from integration.harness import Ordinals, Rig, Sites, interrupt
from integration.known_images import QEMUS

SYSTEM = pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[qemu.short for qemu in QEMUS[:1]])


# A scope and a task reach the same shield: one operation of each shape is enough for the scope.
WAYS = [
    *((name, "task") for name in CASES),
    *((name, "scope") for name in ("snapshot", "commit", "mirror with pivot")),
]


@SYSTEM
@pytest.mark.parametrize(("name", "cancel"), WAYS)
async def test_cancel_at_every_await_leaves_it_before_or_after(qemu, tmp_path, everything, name, cancel):
    choose, came = Ordinals() if everything else Sites(), True
    while came:
        rig = Rig(qemu, CASES[name], tmp_path / f"n{choose.rounds}")
        with rig.start() as running:
            await rig.prepare()
            done = False
            while came and not done:
                async with running.connect() as vm:

                    async def operation(vm=vm, rig=rig):
                        return await vm.run(await vm.plan(rig.intent))

                    came, finished = await interrupt(operation, choose, cancel=cancel)
                    done = await rig.cleared(vm) or bool(finished)
                    running.check_nothing_left()
                    rig.check_machine(done=done)
        rig.verify(done=done)
        for file in rig.records():
            file.unlink()
    assert done
    assert choose.rounds > (20 if rig.case.inside else 40) * (1 if everything else 0.4)
    assert asyncio.get_running_loop().get_task_factory() is None
