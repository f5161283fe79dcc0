"""kill -9 of whoever makes a template, and of the helper: the machine runs on, and the next call succeeds."""

from __future__ import annotations

import os
import signal

import pytest

import qmpsnap
from integration.helpers import launcher
from integration.known_images import KIB, MIB
from integration.machines import blockdev, listing
from integration.processes import until_ended
from integration.states import status
from integration.test_kill import give
from qmpsnap.errors import Changed, ConnectFailed, LinkLost, NotFound


def directories(place):
    """Names of the directories of templates, complete or not."""
    return sorted(path.name for path in place.iterdir() if path.is_dir())


async def finished(vm):
    """Finish or roll back what `jobs` shows, as it says; return the names of the snapshots then."""
    for record in await vm.jobs.interrupted():
        assert record.op == "checkpoint"
        await vm.jobs.wait(record.id)
    return [moment.name for moment in (await vm.moments()).moments]


async def test_killed_client_leaves_no_template_or_a_whole_one_and_the_next_call_makes_it(
    qemu, images, machine, tmp_path, everything
):
    """kill -9 after every seventh step, on other QEMUs than the first every nineteenth."""
    step = 1 if everything else 7 if qemu.short == "7.2" else 19
    vda, place, found = images("base <- s1", folder="a"), tmp_path / "templates", []
    place.mkdir()
    with machine(*blockdev("vda", vda.active)) as running:
        running.qmp("cont")
        before = listing(running.folder)
        for point in range(step // 2, 120, step):
            running.write("vda", point + 1, 6 * MIB, 64 * KIB)
            template = place / "t1"
            ended = give(socket=running.socket, qemu=qemu.version, template=str(template), point=point)
            until_ended(running, tmp_path)
            assert directories(place) in (["t1"], [".t1.partial"], [])
            async with running.connect() as vm:
                left = [finding for finding in await vm.diagnose() if finding.code == "keeper-left"]
                behind = await vm.jobs.left_behind()
                assert [one.directory for one in behind] == ([str(template)] if left else [])
                if behind and len(found) % 2:
                    await qmpsnap.remove_template(behind[0].files[0])  # as `jobs` says
                    assert (await vm.jobs.left_behind(), directories(place)) == ((), [])
                elif directories(place) == [".t1.partial"] and not behind and len(found) % 2:
                    assert await qmpsnap.remove_template(template) == ()
                    assert directories(place) == []
                    assert {finding.code for finding in await vm.diagnose()} <= {"operation-left"}
                names = await finished(vm)
                assert status(running) == "running"
                running.write("vda", 0xEE, 7 * MIB, 4 * KIB)
                if template.exists():
                    assert (names, left) == (["t1"], [])
                    found.append("whole")
                else:
                    with pytest.raises(NotFound):
                        await qmpsnap.open_template(template)
                    of = "t1" if names else None
                    await vm.freeze_template(template, of=of, launcher=launcher(qemu))
                    found.append(("left" if left else "taken") if names else "none")
                made = await qmpsnap.open_template(template, launcher=launcher(qemu))
                async with made.clone(directory=tmp_path) as clone:
                    line = f'qemu-io -d /machine/peripheral/vda/virtio-backend "read -P {point + 1} 6M 64k"'
                    assert await clone.execute("human-monitor-command", {"command-line": line}) == ""
                    assert (await clone.status()).running
                await made.remove()
                await vm.delete("t1")
            running.read("vda", point + 1, 6 * MIB, 64 * KIB)
            running.read("vda", 0xEE, 7 * MIB, 4 * KIB)
            assert (listing(running.folder), directories(place)) == (before, [])
            if ended == 0:
                break
            assert ended == -9
    assert {"none", "left", "whole"} <= {*found}


async def test_helper_that_is_killed_leaves_nothing_of_the_template(qemu, images, machine, tmp_path):
    """After each of its steps, while it loads the checkpoint and while it writes the devices' state."""
    vda, dead = images("base", folder="a"), []
    with machine(*blockdev("vda", vda.active)) as running:
        running.qmp("cont")
        before = listing(running.folder)
        async with running.connect() as vm:
            for victim in ("migrate-set-capabilities", "migrate-incoming", "create-memory", "migrate"):

                def dies(helper, step, _, victim=victim):
                    if step.command == victim:
                        os.kill(helper.pid, signal.SIGKILL)
                        dead.append(victim)

                with pytest.raises((LinkLost, ConnectFailed)) as caught:
                    await vm.freeze_template(tmp_path / "t1", launcher=launcher(qemu, at=dies))
                assert caught.value.changed is Changed.NO
                assert (listing(running.folder), directories(tmp_path)) == (before, ["a"])
                assert status(running) == "running"
                assert ((await vm.moments()).moments, await vm.jobs.interrupted()) == ((), ())
                assert (await vm.graph()).chains() == {"vda": tuple(vda.files[::-1])}
    assert dead == ["migrate-set-capabilities", "migrate-incoming", "create-memory", "migrate"]
