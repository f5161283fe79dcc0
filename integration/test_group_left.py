"""What a killed client of a group has left: `jobs` of each machine shows it, and its commands mend it."""

from __future__ import annotations

import asyncio
import re

import pytest

from integration.harness import Ordinals, Sites, interrupt
from integration.known_images import QEMUS
from integration.machines import listing
from integration.test_group import FIRST, LATER, two
from integration.test_kill import give
from qmpsnap.cli.main import run as run_command
from qmpsnap.errors import Busy

__all__ = ["two"]
POINTS = {"disks": (6,), "in-place": (9, 12, 15, 18), "background": (15, 21)}
"""Both guests are paused, their disks have moved, or one of them runs again."""


@pytest.fixture
def command(capsys):
    def run(socket, *words, ends=0):
        code = run_command(["-s", socket, *words])
        out, err = capsys.readouterr()
        assert code == ends, f"{words}: {err}"
        return out

    return run


def test_killed_client_of_a_group_leaves_what_each_machine_finishes_or_takes_back(
    qemu, two, tmp_path, command, everything
):
    """`job wait` on one machine, `job cancel` on the other: without a running job both do the same."""
    paused, there = [], []
    for way, points in POINTS.items():
        for point in points if everything or qemu is QEMUS[0] else points[:1]:
            with two(folder=f"{way}-{point}") as running:
                sockets = {name: one.socket for name, one in running.running.items()}
                assert give(group=sockets, intent=way, victim="ab"[point % 2], point=point) == -9
                paused += [state for state in running.states().values() if state == "paused"]
                verbs = dict(zip("ab" if point % 2 else "ba", ("wait", "cancel"), strict=True))
                for name, socket in sockets.items():
                    for job_id in re.findall(r"qmpsnap job wait (\S+)", command(socket, "jobs")):
                        found = re.findall(r"^([a-z-]+): ", command(socket, "doctor", ends=8), re.MULTILINE)
                        assert found[0] == "operation-left"
                        assert {*found} <= {"operation-left", "node-left"}
                        command(socket, "job", verbs[name], job_id)
                        there.append(name)
                for socket in sockets.values():
                    assert command(socket, "jobs") == "no jobs\n"
                    assert command(socket, "doctor") == "no trouble found\n"
                assert running.states() == {"a": "running", "b": "running"}
                running.read(FIRST)
                moments = asyncio.run(recovered(running))  # if only one of them had moved its disks
                assert [moment for moment in moments if not moment.complete] == []
                layers = {len(disks["vda"]) for disks in running.roots().values()}
                if way != "background":  # whose overlays may stay; it is said how to commit them
                    assert layers == {3 if moments else 2}
    assert paused
    assert {*there} == {"a", "b"}
    for unread in tmp_path.rglob(".*.json.*"):  # the other machine's record was being written
        unread.unlink()


async def recovered(running):
    async with running.group() as group:
        await group.recover()
        return await group.moments()


async def test_recover_finishes_a_revert_whose_client_was_killed(qemu, two, tmp_path):
    left = []
    with two() as running:
        async with running.group() as group:
            await group.checkpoint("s")
        sockets = {name: one.socket for name, one in running.running.items()}
        for point in (4, 7, 10):
            running.write(LATER)
            assert give(group=sockets, intent="revert", victim="ab"[point % 2], point=point) == -9
            async with running.group() as group:
                found = [await vm.jobs.interrupted() for vm in group.machines.values()]
                left.append({record.op for records in found for record in records})
                if left[-1]:
                    with pytest.raises(Busy, match="revert 's' of the group was interrupted"):
                        await group.revert("s")
                await group.recover()
                assert running.states() == {"a": "running", "b": "running"}
                for vm in group.machines.values():
                    assert (await vm.jobs.list(), await vm.jobs.interrupted()) == ((), ())
                await group.revert("s")
                running.read(FIRST)
    assert {"revert"} in left, left
    for unread in tmp_path.rglob(".*.json.*"):  # the other machine's record was being written
        unread.unlink()


@pytest.mark.one_qemu
async def test_group_that_is_cancelled_anywhere_is_whole_or_as_before(qemu, two, tmp_path, everything):
    """At every site of ours at which a task suspends; sampled: at every eleventh suspension."""
    whole = []
    with two() as running:
        before = listing(tmp_path)
        async with running.group() as group:
            choose = Sites() if everything else Every(11)
            came = True
            while came:

                async def take():
                    await group.checkpoint("s")

                came, _ = await interrupt(take, choose, cancel="task")
                assert running.states() == {"a": "running", "b": "running"}
                running.read(FIRST)
                for vm in group.machines.values():
                    assert await vm.jobs.list() == await vm.jobs.interrupted() == ()
                (moment, *_) = [*await group.moments(), None]
                assert moment is None or moment.complete
                whole.append(moment is not None)
                if moment is not None:
                    await group.delete("s")
                    for name, vm in group.machines.items():
                        chain = (await vm.graph()).chains()["vda"]
                        if chain[0] != str(running.made[name]):
                            await vm.commit("vda", top=chain[0], base=chain[1], folded="remove")
                assert listing(tmp_path) == before
    assert (whole[0], whole[-1]) == (False, True)


class Every(Ordinals):
    """Chooses every n-th suspension."""

    def __init__(self, step):
        super().__init__()
        self._step = step

    def begin(self):
        super().begin()
        self.rounds += self._step - 1
