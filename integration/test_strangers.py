"""What other users of the host put in our way: VM state that is theirs, and a monitor that lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import qmpsnap
from integration.machines import blockdev, messages
from integration.states import refuses
from qmpsnap.errors import TargetUnusable
from qmpsnap.plan.intent import Restore, Revert, RevertIncoming

STRANGER = 4711  # the id of a user that nobody has


def theirs(file: Path) -> str:
    """The stranger's own file under that name, with the same bytes."""
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    os.chown(copy, STRANGER, STRANGER)
    copy.rename(file)
    return f"belongs to the user {STRANGER}"


def a_link(file: Path) -> str:
    file.rename(file.with_name("real"))
    file.symlink_to("real")
    return "symbolic link"


def another_name(file: Path) -> str:
    os.link(file, file.with_name("other"))
    return "has 2 names"


def writable(file: Path) -> str:
    file.chmod(0o666)
    return "others may write to it"


def another_of_ours(file: Path) -> str:
    copy = file.with_name("copy")
    shutil.copy(file, copy)
    copy.rename(file)
    return "not the file that was made"


PLANTED = {one.__name__: one for one in (theirs, a_link, another_name, writable, another_of_ours)}


@pytest.fixture
def exposed(tmp_path):
    """The directory of the images, into which everybody may put files."""
    if os.geteuid():
        pytest.skip("only the superuser can give files away")
    return tmp_path


async def refused(running, vm, intent, file, plant, leftovers):
    file.parent.chmod(0o777)
    text = PLANTED[plant](file)
    leftovers.allow(*(str(one) for one in file.parent.iterdir()))
    await refuses(running, vm, intent, TargetUnusable, text)


@pytest.mark.parametrize("plant", PLANTED)
async def test_revert_in_place_loads_no_store_of_a_stranger(exposed, images, machine, leftovers, plant):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            (moment,) = (await vm.moments()).moments
            store = Path(moment.vm_state_file)
            assert (store.stat().st_ino, store.stat().st_uid) == (
                moment.record.state.inode,
                moment.record.state.user,
            )
            await vm.revert("c1")
            await refused(running, vm, Revert("c1"), store, plant, leftovers)


@pytest.mark.parametrize("plant", PLANTED)
async def test_a_new_qemu_loads_no_memory_of_a_stranger(exposed, images, machine, leftovers, plant):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="stop")
            (moment,) = (await vm.moments()).moments
            prepared = await vm.run(await vm.plan(qmpsnap.PrepareRevert("c1")))
    with machine(*blockdev("vda", prepared.prepared["vda"]), extra=("-incoming", "defer")) as new:
        async with new.connect() as vm:
            file = Path(moment.vm_state_file)
            await refused(new, vm, RevertIncoming("c1"), file, plant, leftovers)


@pytest.mark.parametrize("plant", sorted(set(PLANTED) - {"another_of_ours"}))
async def test_restore_loads_no_memory_of_a_stranger(exposed, images, machine, leftovers, plant):
    made = images("base")
    file = exposed / "saved"
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.save(str(file))
    with machine(*blockdev("vda", made.active), extra=("-incoming", "defer")) as new:
        async with new.connect() as vm:
            await refused(new, vm, Restore(str(file)), file, plant, leftovers)


async def test_a_store_of_another_inode_is_ours_where_nobody_else_may_put_files(images, machine):
    """A directory that was put back from a backup: nobody else could have put it there."""
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.checkpoint("c1", mode="in-place")
            (moment,) = (await vm.moments()).moments
            another_of_ours(Path(moment.vm_state_file))
            Path(moment.vm_state_file).parent.chmod(0o755)
            assert messages(await vm.plan(Revert("c1")))
            await vm.revert("c1")
