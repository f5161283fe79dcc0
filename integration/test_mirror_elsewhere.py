"""A mirror whose target lies beside neither layer nor record, and whose client is killed before it begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

from integration.known_images import content
from integration.machines import blockdev
from qmpsnap.errors import TargetExists

CLIENT = """
import asyncio, os, signal, sys
import qmpsnap

socket, target = sys.argv[1:]

async def main():
    async with qmpsnap.connect(socket) as vm:
        perform = vm._target.perform

        async def killed_once_it_is_there(step):
            seconds = await perform(step)
            if os.path.exists(target):
                os.kill(os.getpid(), signal.SIGKILL)
            return seconds

        vm._target.perform = killed_once_it_is_there
        await vm.mirror("vda", target, ending="pivot")

asyncio.run(main())
"""


async def test_killed_mirror_leaves_its_empty_target_and_says_so(qemu, images, machine, tmp_path):
    made = images("base <- s1", folder="disk")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    target = elsewhere / "copy.qcow2"
    with machine(*blockdev("vda", made.active)) as running:
        client = subprocess.run(
            [sys.executable, "-c", CLIENT, running.socket, str(target)], check=False, timeout=60
        )
        assert client.returncode == -9
        assert target.stat().st_size == 0
        async with running.connect() as vm:
            (record,) = await vm.jobs.interrupted()
            assert record.target == str(target)
            done = await vm.jobs.wait(record.id)
            assert done.chains == {"vda": made.chain}
            assert f"{target} stays: it is not known whose empty file it is" in done.notes
            assert await vm.jobs.interrupted() == ()
            assert target.stat().st_size == 0
            with pytest.raises(TargetExists) as caught:
                await vm.mirror("vda", target, ending="pivot")
            assert caught.value.file == str(target)
            target.unlink()
            assert (await vm.mirror("vda", target, ending="pivot")).chains == {"vda": (str(target),)}
    assert qemu.read(target) == content(2)
    assert list(elsewhere.iterdir()) == [target]
