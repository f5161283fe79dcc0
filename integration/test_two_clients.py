"""Two clients of one machine at once, each with a monitor of its own: one waits until the other is done."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev
from qmpsnap.errors import Busy, NotFound
from qmpsnap.run import machine_lock

pytestmark = pytest.mark.timeout(60)

LATER = (0xA1, 5 * MIB, 64 * KIB)
NEWEST = (0xA2, 6 * MIB, 64 * KIB)


@pytest.fixture
def until_it_waits(monkeypatch):
    """Begin a call of the second client; return its task once it waits for the first, stands or has ended."""
    waiting = anyio.Event()
    sleep = anyio.sleep

    async def observed(seconds):
        if seconds == machine_lock._AGAIN:
            waiting.set()
        await sleep(seconds)

    async def begin(call, stands=None):
        task = asyncio.create_task(call)
        waits = [asyncio.create_task(event.wait()) for event in (waiting, stands) if event is not None]
        await asyncio.wait({task, *waits}, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return task

    monkeypatch.setattr(machine_lock, "_AGAIN", 0.0123)  # nobody else sleeps as long
    monkeypatch.setattr(anyio, "sleep", observed)
    return begin


@pytest.fixture
def two(images, machine, temporary):
    """A machine with vda on an image of known content, and snapshots m1 and m2, each before a write."""
    made = images("base")
    second = Path(temporary) / "second"

    @asynccontextmanager
    async def run():
        with machine(*blockdev("vda", made.active), "-qmp", f"unix:{second},server=on,wait=off") as running:
            async with running.connect() as one, qmpsnap.connect(str(second), name="second") as other:
                await one.snapshot("m1")
                running.write("vda", *LATER)
                await one.snapshot("m2")
                running.write("vda", *NEWEST)
                yield running, one, other

    return run


def at(command, do):
    """Hooks that call `do` once, just before the first step of that command."""
    done = []

    async def before(step):
        if step.command == command and not done:
            done.append(step)
            await do()

    return qmpsnap.Hooks(before=before)


async def test_revert_puts_no_overlay_on_a_layer_to_which_a_delete_is_about_to_write(
    qemu, two, until_it_waits
):
    async with two() as (running, one, other):
        tasks, stands, deleted = [], anyio.Event(), anyio.Event()

        async def stand():
            """Its overlay is on the layer now, and the guest not yet on the overlay."""
            stands.set()
            await deleted.wait()

        async def revert():
            tasks.append(await until_it_waits(other.revert("m1", hooks=at("stop", stand)), stands))

        done = await one.delete("m1", hooks=at("write-record", revert))
        deleted.set()
        with pytest.raises((Busy, NotFound), match=r"held by job|there is no snapshot 'm1'|is running"):
            await tasks[0]
        assert [moment.name for moment in (await one.moments()).moments] == ["m2"]
        running.quit()
    assert qemu.read(done.chains["vda"][0]) == overwritten(content(1), LATER, NEWEST)


async def test_snapshots_of_two_clients_are_both_taken(qemu, two, until_it_waits):
    async with two() as (running, one, other):
        tasks = []

        async def snapshot():
            tasks.append(await until_it_waits(other.snapshot("b")))

        await one.snapshot("a", hooks=at("transaction", snapshot))
        second = await tasks[0]
        assert [moment.name for moment in (await one.moments()).moments] == ["m1", "m2", "a", "b"]
        running.quit()
    assert qemu.read(second.chains["vda"][0]) == overwritten(content(1), LATER, NEWEST)


async def test_second_of_two_backups_is_refused_before_it_has_changed_anything(two, tmp_path, until_it_waits):
    async with two() as (_, one, other):
        tasks = []

        async def backup():
            tasks.append(await until_it_waits(other.backup(tmp_path / "second")))

        done = await one.backup(tmp_path / "first", hooks=at("transaction", backup))
        with pytest.raises(Busy, match=r"another backup of vda is running|held by job"):
            await tasks[0]
        assert done.backup.disks.keys() == {"vda"}
        assert not (tmp_path / "second").exists()
