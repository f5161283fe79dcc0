"""A machine on its way to another QEMU: its disks stay as that one was started on them (two real QEMUs)."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import pytest

from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import blockdev, listing, traced, wait_for
from qmpsnap.errors import Busy, Changed, MigrationFailed, Refused, Unsupported
from qmpsnap.plan.commands.migration import migrate_cancel
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Mirror,
    Revert,
    Save,
    Snapshot,
    Stream,
)
from qmpsnap.run import migration

WRITE = (0xA1, 6 * MIB, 64 * KIB)
LATER = (0xA2, 0, 64 * KIB)
SLOW, FAST = 20_000, 1 << 40  # bytes/s


def verbs(tmp_path):
    """One of every verb that changes a disk, or keeps VM state."""
    return (
        Snapshot("n1"),
        Snapshot("n1", inside=True),
        Stream("vda"),
        Commit("vda"),
        Mirror("vda", str(tmp_path / "copy.qcow2"), "finish"),
        Mirror("vda", str(tmp_path / "copy.qcow2"), "pivot"),
        Checkpoint("n1"),
        Checkpoint("n1", "in-place"),
        Checkpoint("n1", "internal"),
        Save(str(tmp_path / "memory")),
        Revert("kept"),
        Delete("kept"),
    )


async def all_refused(running, vm, tmp_path, kinds, text, *, but=()):
    before = listing(tmp_path), running.roots()
    for intent in verbs(tmp_path):
        if intent in but:
            continue
        with traced(vm) as sent, pytest.raises(Refused, match=text) as caught:
            await vm.run(await vm.plan(intent))
        assert (isinstance(caught.value, kinds), caught.value.changed, sent) == (True, Changed.NO, []), intent
        assert caught.value.hint
    assert (listing(tmp_path), running.roots()) == before


@contextmanager
def migrating(machine, disks, tmp_path):
    """Two QEMUs on the same disks, and a migration from the first to the second, too slow to end."""
    with machine(*disks, "-incoming", f"unix:{tmp_path / 'way'}") as there, machine(*disks) as here:
        here.qmp("cont")
        here.write("vda", *WRITE)
        yield here, there


def begin(here, tmp_path):
    here.qmp("migrate-set-parameters", {"max-bandwidth": SLOW})
    here.qmp("migrate", uri=f"unix:{tmp_path / 'way'}")
    wait_for(lambda: here.qmp("query-migrate").get("status") == "active", "the migration")


async def test_every_verb_is_refused_during_a_migration_and_after_it(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    disks = blockdev("vda", made.active)
    with migrating(machine, disks, tmp_path) as (here, there):
        async with here.connect() as vm:
            await vm.snapshot("kept", inside=True)
            begin(here, tmp_path)
            await all_refused(here, vm, tmp_path, Busy, r"a migration is running \(active\)")
            here.qmp("migrate-set-parameters", {"max-bandwidth": FAST})
            wait_for(lambda: here.qmp("query-status")["status"] == "postmigrate", "the migration's end")
            # The store of a checkpoint in place is no image that QEMU has given up, and it moves no byte.
            but = (Checkpoint("n1", "in-place"),)
            await all_refused(here, vm, tmp_path, Unsupported, r"postmigrate|deactivated its images", but=but)
            with pytest.raises(Unsupported, match="deactivated its images") as caught:
                await vm.snapshot("n1")
            assert "resume it first: qmpsnap cont --after-migration resumes" in caught.value.hint
        wait_for(lambda: there.qmp("query-status")["status"] == "paused", "the guest")  # it has -S
        there.qmp("cont")
        there.write("vda", *LATER)
        here.kill()
        async with there.connect() as vm:  # who took the guest over has all verbs
            assert (await vm.snapshot("n1")).chains["vda"][1:] == made.chain
    assert qemu.read(made.active) == overwritten(content(2), WRITE, LATER)
    qemu.check(made.active)


async def test_every_disk_is_free_again_once_a_migration_is_cancelled(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    with migrating(machine, blockdev("vda", made.active), tmp_path) as (here, there):
        begin(here, tmp_path)
        async with here.connect() as vm:
            with pytest.raises(Busy, match="a migration is running") as caught:
                await vm.snapshot("n1")
            assert "migrate_cancel" in caught.value.hint
            here.qmp("migrate_cancel")
            wait_for(lambda: here.qmp("query-migrate")["status"] == "cancelled", "the cancellation")
            await vm.snapshot("n1")
            await vm.commit("vda", top="n1", base="s1")
        there.kill()
    assert qemu.read(made.active) == overwritten(content(2), WRITE)
    qemu.check(made.active)


async def test_a_qemu_that_waits_for_a_guest_leaves_its_disks_alone(images, machine):
    made = images("base <- s1")
    with machine(*blockdev("vda", made.active), "-incoming", "defer") as there:
        async with there.connect() as vm:
            for intent in (Snapshot("n1"), Snapshot("n1", inside=True), Stream("vda"), Commit("vda")):
                with traced(vm) as sent, pytest.raises(Unsupported, match="waits for VM state"):
                    await vm.run(await vm.plan(intent))
                assert sent == []


async def test_migration_that_is_waited_for_and_writes_no_more_is_given_up(machine, tmp_path, monkeypatch):
    """As on QEMU 7.2, where no background snapshot is cancelled, if its file system takes no data."""
    monkeypatch.setattr(migration, "_MOMENT", 1.0)
    with socket.socket(socket.AF_UNIX) as reader, machine() as running:
        reader.bind(str(tmp_path / "way"))
        reader.listen()
        running.qmp("migrate", uri=f"unix:{tmp_path / 'way'}")
        wait_for(lambda: running.qmp("query-migrate").get("status") == "active", "the migration")
        async with running.connect() as vm:
            with pytest.raises(MigrationFailed, match="QEMU has written nothing for 1 s"):
                await vm._target.perform(migrate_cancel("wait"))
            await vm._target.perform(migrate_cancel("cancel"))
        assert running.qmp("query-migrate")["status"] == "cancelled"
