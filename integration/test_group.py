"""Several machines at one instant: taken, reverted, deleted; and what a failure or kill -9 leaves of it.

Both machines stand on one base image. On the first QEMU every way and a sample of the points are tried, on
the others fewer.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.harness import stepped
from integration.known_images import KIB, MIB, QEMUS, content, overwritten
from integration.machines import SOON, blockdev, listing
from integration.test_kill import give
from qmpsnap import MachineDisk, Nic
from qmpsnap.errors import BadArgument, Changed, CommandFailed, Incomplete, LinkLost, NotFound, QmpsnapError
from qmpsnap.group import facade, together
from qmpsnap.run.session.change import Limits
from qmpsnap.testing.fetching import guest_directory
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.machine import guest_machine

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


@pytest.mark.parametrize("way", ["disks", "in-place", pytest.param("background", marks=pytest.mark.one_qemu)])
async def test_group_takes_reverts_and_deletes_a_moment_of_all_machines(qemu, two, tmp_path, way):
    was = None
    with two() as running:
        was = Path(running.base).read_bytes()
        async with running.group() as group:
            taken = await (group.snapshot("s") if way == "disks" else group.checkpoint("s", mode=way))
            assert taken.spread_s is not None
            assert taken.spread_s < SOON
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


async def test_group_is_as_before_when_a_machine_dies_or_hangs_before_anything_is_sent(qemu, two, tmp_path):
    """One that hangs is not waited for once the caller leaves; until then no guest is paused."""
    with two() as running:
        before, there = listing(tmp_path), running.running["a"].roots()
        async with running.group() as group:
            plans = await group.plan(qmpsnap.Snapshot("s"))
            victim = running.running["b"]
            os.kill(victim.pid, signal.SIGSTOP)
            task = asyncio.create_task(group.run(plans))
            await anyio.sleep(1)
            assert (task.done(), running.running["a"].qmp("query-status")["status"]) == (False, "running")
            task.cancel()
            await asyncio.wait({task}, timeout=20)
            assert task.cancelled()
            os.kill(victim.pid, signal.SIGCONT)
            assert set(running.states().values()) == {"running"}
            assert (listing(tmp_path), await group.moments()) == (before, ())
            victim.kill()
            with pytest.raises(LinkLost, match=r"^b: ") as caught:
                await group.run(plans)
            assert (caught.value.changed, caught.value.hint[:24]) == (Changed.NO, "all machines are as befo")
        a = running.running["a"]
        assert (a.roots(), a.qmp("query-status")["status"]) == (there, "running")
        assert [name for name in listing(tmp_path) if ".s." in name or "record" in name] == []


def hanging(running, vm, commands):
    """Let QEMU hang before it is sent one of these commands, for an operation or by itself."""
    target = vm._target
    perform, execute = target.perform, target.execute

    async def performed(step):
        if step.command in commands:
            os.kill(running.pid, signal.SIGSTOP)
        return await perform(step)

    async def executed(command, arguments=None):
        if command in commands:
            os.kill(running.pid, signal.SIGSTOP)
        return await execute(command, arguments)

    target.perform, target.execute = performed, executed


def setting(noticed, name):
    """Return a function that sets `noticed` once it is given an event of that name."""
    return lambda event: noticed.set() if event.name == name else None


@pytest.mark.one_qemu
@pytest.mark.parametrize(
    ("how", "at", "answers"),
    [
        ("stop", "stop", True),
        ("stop", "stop", False),
        ("snapshot", "stop", True),
        ("snapshot", "transaction", False),
        ("checkpoint", "transaction", True),
    ],
)
async def test_guests_run_again_when_another_machine_hangs_while_they_wait_for_it(
    two, tmp_path, monkeypatch, how, at, answers
):
    """`answers`: it answers once they run again, while its reply is still awaited."""
    for module in (facade, together):
        monkeypatch.setattr(module, "PATIENCE", 3.0)
    monkeypatch.setattr(facade, "_TO_RESUME", 3.0)
    with two() as running:
        before = running.roots()
        b = running.running["b"]
        async with running.group() as group:
            vm, resumed = group.machines["b"], {name: anyio.Event() for name in group.machines}
            if not answers:
                vm._executor._after_cancel = 1.0
                vm._target.session._limits = Limits(cancelled=1.0)
            hanging(b, vm, {at})
            call = {"stop": group.stop, "snapshot": lambda: group.snapshot("s")}.get(
                how, lambda: group.checkpoint("s")
            )
            with ExitStack() as watched:
                for name, event in resumed.items():
                    watched.enter_context(group.machines[name].events(setting(event, "RESUME")))
                task = asyncio.create_task(call())
                await resumed["a"].wait()
                if answers:
                    os.kill(b.pid, signal.SIGCONT)
                with pytest.raises(
                    QmpsnapError, match=f"^b: QEMU did not answer '{at}' within 3 s"
                ) as caught:
                    await task
                os.kill(b.pid, signal.SIGCONT)
                if how == "stop":  # its `cont` is on the way, and would be lost with the link
                    with anyio.fail_after(60):
                        await resumed["b"].wait()
                else:
                    assert caught.value.changed is (Changed.NO if answers else Changed.YES)
                    assert isinstance(caught.value, Incomplete) is not answers
        async with running.group() as group:
            await group.recover()  # what it had done on that machine alone is deleted
            assert await group.moments() == ()
        assert set(running.states().values()) == {"running"}
        assert running.roots() == before
        running.read(FIRST)


@pytest.mark.one_qemu
async def test_read_only_disks_are_left_out_and_a_machine_without_others_is_refused(
    qemu, images, machine, tmp_path
):
    one, two = (images("base", folder=name).active for name in "ab")
    fixed = json.dumps(
        {"driver": "qcow2", "node-name": "ro", "read-only": True}
        | {"file": {"driver": "file", "filename": two}}
    )
    read_only = ("-blockdev", fixed, "-device", "virtio-blk-pci,drive=ro,id=vdr")
    with machine(*blockdev("vda", one), *read_only) as a, machine(*read_only) as b:
        before = listing(tmp_path)
        a.write("vda", FIRST, *PLACE)
        async with a.connect() as first, b.connect() as second:
            with pytest.raises(NotFound, match=r"^b: there is no writable disk") as caught:
                await qmpsnap.Group({"a": first, "b": second}).checkpoint("s")
            assert "leave the machine out of a group" in caught.value.hint
            assert listing(tmp_path) == before
            group = qmpsnap.Group({"a": first})
            taken = await group.checkpoint("s")
            assert {*taken.machines["a"].active} == {"vda"}
            a.write("vda", LATER, *PLACE)
            await group.revert("s")
            a.read("vda", FIRST, *PLACE)
            await group.delete("s")


@pytest.mark.one_qemu
async def test_group_whose_machine_dies_is_taken_back_once_that_was_started_again(qemu, two, tmp_path):
    with two() as running:
        before = listing(tmp_path)
        a, b = running.running.values()
        b.qemu_io("vda", "flush")

        def dies(point):
            if point == 2 * 2:  # its files are there; it is about to be paused
                b.kill()

        async with running.group(b=dies) as group:
            with pytest.raises(Incomplete, match=r"^b: lost ") as caught:
                await group.checkpoint("s")
            (remaining,) = caught.value.remaining
            assert remaining.startswith("b: qmpsnap jobs (lost ")
            assert caught.value.hint.startswith("connect again to the machines that were lost")
            assert (a.qmp("query-status")["status"], len(a.roots()["vda"])) == ("running", 2)
    with two(running.made) as again:
        async with again.group() as group:
            assert (await group.recover(), await group.moments()) == ((), ())
        again.read(FIRST)
        assert listing(tmp_path) == before


@pytest.mark.one_qemu
async def test_machine_that_is_given_under_two_names_is_refused(qemu, machine, images, temporary):
    second = temporary / "qmp"
    more = ("-qmp", f"unix:{second},server=on,wait=off")
    with machine(*blockdev("vda", images("base").active), *more) as running:
        async with running.connect() as first, qmpsnap.connect(str(second)) as again:
            with pytest.raises(BadArgument, match=rf"it is the same machine as 'a', process {running.pid}"):
                qmpsnap.Group({"a": first, "b": again})


POINTS = {
    "disks": (4, 9, 11),
    "in-place": (13, 19, 25),
    "background": (27,),
}


async def test_group_is_whole_or_as_before_after_its_client_was_killed_at_any_step(
    qemu, two, everything, tmp_path
):
    seen = set()
    for way, points in POINTS.items():
        if qemu is not QEMUS[0] and way != "in-place" and not everything:
            continue
        sampled = points if qemu is QEMUS[0] else points[::2]
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


# -- with guests -----------------------------------------------------------------------------------

# One guest counts, the other one writes down what arrives: every number once, in order.
# (nc ends with its input.)
_LISTEN = (
    "ip addr add 10.0.0.1/24 dev eth0; ip link set eth0 up; "
    "(sleep 9999 | nc -l -p 7 > /tmp/got) > /dev/null 2>&1 & "
    "until cat /proc/net/tcp* | grep -q ':0007 .* 0A '; do usleep 10000; done"
)
_COUNT = (
    "ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up; "
    "(n=0; while :; do n=$((n + 1)); echo $n; usleep 10000; done | nc 10.0.0.1 7) > /dev/null 2>&1 &"
)


async def arrived(guest):
    """How many numbers have arrived; demand that none is missing and none came twice."""
    lines = (await guest.run("cat /tmp/got")).split("\n")[:-1]  # the last may be half a line
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    return len(lines)


async def arrives(guest, count):
    with anyio.fail_after(60):
        while (now := await arrived(guest)) < count:
            await anyio.sleep(0.1)
    return now


@pytest.mark.one_qemu
async def test_tcp_between_the_guests_goes_on_after_a_revert(qemu, tmp_path):
    if not (guest_directory() / "modules/virtio_net.ko").exists():
        pytest.skip("the guest has no driver of a network card: scripts/setup guest fetches it")
    ends = {"a": tmp_path / "net-a", "b": tmp_path / "net-b"}

    def machine(name, other, mac):
        disk = MachineDisk("vda", qemu.create(tmp_path / f"{name}.qcow2", size=MIB))
        link = f"local.type=unix,local.path={ends[name]},remote.type=unix,remote.path={ends[other]}"
        described = guest_machine(qemu.system, [disk], memory_mib=96)
        return replace(described, nics=[Nic(f"dgram,{link}", mac)])

    async with (
        qmpsnap.launch(machine("a", "b", "52:54:00:00:00:01"), name="a") as a,
        qmpsnap.launch(machine("b", "a", "52:54:00:00:00:02"), name="b") as b,
    ):
        listener, counter = Guest(a.port(PORT_NAME)), Guest(b.port(PORT_NAME))
        await listener.wait_ready()
        await counter.wait_ready()
        await listener.run(_LISTEN)
        await counter.run(_COUNT)
        await arrives(listener, 5)
        group = qmpsnap.Group({"a": a, "b": b})
        await group.checkpoint("s")
        await listener.run("touch /tmp/later")
        await arrives(listener, await arrived(listener) + 20)
        await group.revert("s")
        await listener.run("test ! -e /tmp/later")
        await arrives(listener, await arrived(listener) + 20)
