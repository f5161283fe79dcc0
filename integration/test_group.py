"""Several machines at one instant: taken, reverted, deleted; and what a failure or kill -9 leaves of it.

Both machines stand on one base image. On the first QEMU every way and a sample of the points are tried, on
the others fewer.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import qmpsnap
from integration.harness import stepped
from integration.known_images import KIB, MIB, QEMUS, content, overwritten
from integration.machines import blockdev, listing
from integration.test_kill import orders
from qmpsnap.errors import Changed, CommandFailed, NotFound

PLACE = (6 * MIB, 64 * KIB)
FIRST, LATER, LAST = 0xA1, 0xA2, 0xA3


@dataclass
class Two:
    """Machines `a` and `b`, each with an overlay on the same base, and the pattern that each has written."""

    qemu: object
    base: str
    made: dict
    running: dict

    @asynccontextmanager
    async def group(self, **at):
        """The group; `at`: called with the number of each step of that machine."""
        async with AsyncExitStack() as stack:
            machines = {
                name: await stack.enter_async_context(stepped(one.socket, at.get(name, lambda _: None)))
                for name, one in self.running.items()
            }
            yield qmpsnap.Group(machines)

    def write(self, pattern):
        for name, one in self.running.items():
            one.write("vda", pattern + (name == "b") * 0x10, *PLACE)

    def read(self, pattern):
        for name, one in self.running.items():
            one.read("vda", pattern + (name == "b") * 0x10, *PLACE)

    def states(self):
        return {name: one.qmp("query-status")["status"] for name, one in self.running.items()}

    def roots(self):
        return {name: one.roots() for name, one in self.running.items()}


@pytest.fixture
def two(qemu, images, machine, tmp_path):
    """Both run, and have written."""
    (base,) = images("base").chain

    @contextmanager
    def start(active=None, *, folder="."):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        made = active or {name: qemu.create(place / f"{name}.qcow2", backing=base) for name in "ab"}
        with machine(*blockdev("vda", made["a"])) as a, machine(*blockdev("vda", made["b"])) as b:
            a.qmp("cont")
            b.qmp("cont")
            found = Two(qemu, base, made, {"a": a, "b": b})
            if active is None:
                found.write(FIRST)
            yield found

    return start


@pytest.mark.parametrize("way", ["disks", "in-place", "background"])
async def test_group_takes_reverts_and_deletes_a_moment_of_all_machines(qemu, two, tmp_path, way):
    if qemu is not QEMUS[0] and way == "background":
        pytest.skip("sampled: the mode's own tests have it on every QEMU")
    was = None
    with two() as running:
        was = Path(running.base).read_bytes()
        async with running.group() as group:
            taken = await (group.snapshot("s") if way == "disks" else group.checkpoint("s", mode=way))
            assert taken.spread_s is not None
            assert taken.spread_s < 1
            assert running.states() == {"a": "running", "b": "running"}
            assert {name: done.active["vda"] for name, done in taken.machines.items()} == {
                name: f"{tmp_path}/base.{name}.s.qcow2" for name in "ab"
            }
            running.write(LATER)
            if way == "background":
                with pytest.raises(qmpsnap.Unsupported, match="only a new QEMU can load it"):
                    await group.revert("s")
                active = {name: done.active["vda"] for name, done in taken.machines.items()}
            else:
                back = await group.revert("s")
                active = {name: done.active["vda"] for name, done in back.machines.items()}
                assert set(running.states().values()) == {"running"}
                running.read(FIRST)
                running.write(LAST)
            await group.delete("s")
            assert await group.moments() == ()
            active = {
                name: (await vm.graph()).disks["vda"].active.file for name, vm in group.machines.items()
            }
    with two(active) as again:  # the machines start from what they were told
        again.read(LATER if way == "background" else LAST)
    assert Path(again.base).read_bytes() == was
    for name, file in active.items():
        qemu.check(file)
        pattern = (LATER if way == "background" else LAST) + (name == "b") * 0x10
        assert qemu.read(file) == overwritten(content(1), (pattern, *PLACE))


async def test_group_is_as_before_when_one_machine_fails_at_the_instant(qemu, two, tmp_path):
    with two() as running:
        before = listing(tmp_path), running.roots()

        def spoil(point):
            overlay = tmp_path / "base.b.s.qcow2"
            if point == 2 * 3 and overlay.exists():  # before the transaction: QEMU cannot open it
                overlay.write_bytes(b"no image")

        async with running.group(b=spoil) as group:
            with pytest.raises(CommandFailed, match=r"^b: ") as caught:
                await group.snapshot("s")
            assert caught.value.changed is Changed.NO
            assert await group.moments() == ()
        (tmp_path / "base.b.s.qcow2").unlink(missing_ok=True)  # it is no image of ours any more, and stays
        assert (listing(tmp_path), running.roots()) == before
        assert set(running.states().values()) == {"running"}
        running.read(FIRST)
    assert qemu.read(running.made["a"]) == overwritten(content(1), (FIRST, *PLACE))


POINTS = {
    "disks": (4, 7, 8, 9, 11),
    "in-place": (9, 13, 17, 19, 21, 25),
    "background": (19, 27),
}


async def test_group_is_whole_or_as_before_after_its_client_was_killed_at_any_step(
    qemu, two, everything, tmp_path
):
    seen = set()
    with orders() as give:
        for way, points in POINTS.items():
            if qemu is not QEMUS[0] and way != "in-place" and not everything:
                continue
            sampled = points if qemu is QEMUS[0] else points[1::3]
            for point in range(40) if everything else sampled:
                with two(folder=f"{way}-{point}") as running:
                    before = running.roots()
                    sockets = {name: one.socket for name, one in running.running.items()}
                    victim = "ab"[point % 2]
                    status = give(group=sockets, intent=way, victim=victim, point=point)
                    if status == 0:
                        break
                    assert status == -9
                    async with running.group() as group:
                        left = await group.moments()
                        if any(not moment.complete for moment in left):
                            with pytest.raises((NotFound, qmpsnap.Busy)):
                                await group.revert("s")
                        await group.recover()
                        whole = await group.moments()
                        assert all(moment.complete for moment in whole)
                        assert running.states() == {"a": "running", "b": "running"}
                        running.read(FIRST)
                        if not whole and way != "background":
                            assert {name: len(one["vda"]) for name, one in running.roots().items()} == {
                                name: len(one["vda"]) for name, one in before.items()
                            }
                        if whole:
                            running.write(LATER)
                            if way != "background":
                                await group.revert("s")
                                running.read(FIRST)
                            await group.delete("s")
                        seen.add(bool(whole))
    assert False in seen
    for unread in tmp_path.rglob(".*.json.*"):  # the other machine's record was being written
        unread.unlink()
