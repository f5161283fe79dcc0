"""What other users of the host put in our way: VM state that is theirs, and a monitor that lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

import qmpsnap
from integration.machines import blockdev, messages
from integration.states import refuses
from qmpsnap.errors import InvalidTarget, NotFound, NotInChain
from qmpsnap.model.names import state_directory
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_file import to_json
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.files import Proof, create_file, retire_file
from qmpsnap.plan.commands.records import finish_record
from qmpsnap.plan.intent import Restore, Revert
from qmpsnap.run.record_search import link_name
from tests.model.records import committing, stages

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
    await refuses(running, vm, intent, InvalidTarget, text)


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
            prepared = await vm.run(await vm.plan(qmpsnap.Revert("c1", into="new")))
    with machine(*blockdev("vda", prepared.prepared["vda"]), extra=("-incoming", "defer")) as new:
        async with new.connect() as vm:
            file = Path(moment.vm_state_file)
            await refused(new, vm, Revert("c1", into="incoming"), file, plant, leftovers)


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


@pytest.fixture
def victim(tmp_path_factory):
    """A file that is none of the machine's: its bytes are to be what they were."""
    file = tmp_path_factory.mktemp("elsewhere") / "victim"
    file.write_bytes(b"root:secret" * 1000)
    yield file
    assert file.read_bytes() == b"root:secret" * 1000
    assert [one.name for one in file.parent.iterdir()] == ["victim"]


def bring(base: Path, record):
    """Put a record beside the base image, as a bundle that was unpacked has it."""
    directory = Path(state_directory(str(base)))
    directory.mkdir(exist_ok=True)
    (directory / record.file_name).write_text(to_json(record))
    return directory


def folding(policy, made, victim, to=None):
    """A record of a commit that seems to have ended well, all but for putting the folded file away."""
    chain = made.files[::-1]  # active first
    job = "qmpsnap-commit-keep-0a1b2c3d"
    to = (to or f"{victim}.invalid") if policy == "rename" else ""
    return IntentRecord(
        id=job,
        op="commit",
        created="2024-05-01T12:00:00+00:00",
        chains={"vda": (chain[0], str(victim), *chain[1:])},
        after={"vda": chain},
        stages=stages(
            committing(job, above=chain[0], base=chain[1]),
            tidy=(
                retire_file(str(victim), policy, to, Proof("qcow2", chain[1])),
                finish_record(state_directory(chain[-1]), (job,)),
            ),
        ),
        folded=(str(victim),),
    )


@pytest.mark.parametrize("policy", ["rename", "remove"])
async def test_a_bundles_record_of_a_commit_puts_no_file_away(images, machine, leftovers, victim, policy):
    made = images("base <- s1")
    record = folding(policy, made, victim)
    directory = bring(Path(made.files[0]), record)
    leftovers.allow(str(directory), *(str(one) for one in directory.iterdir()))
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            assert [one.id for one in await vm.jobs.interrupted()] == [record.id]
            done = await vm.jobs.wait(record.id)
            assert f"{victim} stays: by its header it is not an overlay" in done.notes
            assert await vm.jobs.interrupted() == ()


@pytest.mark.parametrize("what", ["made", "folded", "renamed"])
async def test_a_bundles_record_that_names_a_file_of_the_host_is_none(
    images, machine, leftovers, victim, what
):
    made = images("base <- s1")
    record = folding("rename", made, victim, to=f"{victim.parent}/new" if what == "renamed" else None)
    match what:
        case "made":
            more = Stage("make it", (create_file(str(victim), ""),))
            record = replace(record, stages=(*record.stages, more))
        case "folded":
            record = replace(record, chains={"vda": made.files[::-1]})
    directory = bring(Path(made.files[0]), record)
    leftovers.allow(str(directory), *(str(one) for one in directory.iterdir()))
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            assert await vm.jobs.interrupted() == ()
            with pytest.raises(NotFound):
                await vm.jobs.wait(record.id)


async def test_a_bundles_link_to_another_machines_records_makes_no_guest_read_its_image(
    qemu, images, machine, leftovers, tmp_path
):
    """A forged moment claims the machine's base image, and that the other machine's goes on from it."""
    made = images("base")
    base = Path(made.active)
    folder = tmp_path / "other"
    folder.mkdir()
    image = qemu.create(folder / "v.qcow2", 64 * 1024)
    overlay = qemu.create(folder / "v.s1.qcow2", backing=str(image), backing_format="qcow2")
    good = MomentRecord(
        id="qmpsnap-snapshot-keep-000000aa",
        name="good",
        created="2024-05-01T12:00:00+00:00",
        overlays={"vda": str(overlay)},
        covered={"vda": str(image)},
        chains={"vda": (str(image),)},
    )
    theirs = bring(Path(image), good)
    older = str(base.with_name("older.qcow2"))
    forged = replace(
        good,
        id="qmpsnap-snapshot-keep-000000bb",
        name="forged",
        overlays={"vda": str(base)},
        covered={"vda": older},
        chains={"vda": (older,)},
        branches=({"vda": str(image)},),
    )
    directory = bring(base, forged)
    (directory / link_name(str(theirs))).symlink_to(theirs)
    leftovers.allow(str(directory), *(str(one) for one in directory.iterdir()))
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            await vm.snapshot("own")
            assert "good" in [one.name for one in (await vm.moments()).moments]
            for intent in (Revert("good"), Revert("good", into="new")):
                await refuses(running, vm, intent, NotInChain, "which no disk of this machine has open")


@pytest.mark.parametrize("aside", [False, True])
async def test_a_bundles_moment_makes_no_guest_read_a_file_of_the_host(
    qemu, images, machine, leftovers, victim, aside
):
    """The second moment stands on the first one's overlay, and claims that this covers the victim."""
    made = images("base <- s1")
    bundled = Path(made.files[0]).with_name("x.qcow2")
    chain = (str(bundled), str(victim)) if aside else (str(victim),)
    if aside:
        qemu.create(bundled, backing=str(victim), backing_format="raw")
    moment = MomentRecord(
        id="qmpsnap-snapshot-keep-0a1b2c3d",
        name="before",
        created="2024-05-01T12:00:00+00:00",
        overlays={"vda": made.active},
        covered={"vda": chain[0]},
        chains={"vda": chain},
        formats={"vda": ("qcow2", "raw") if aside else ("raw",)},
    )
    directory = bring(Path(made.files[0]), moment)
    leftovers.allow(str(directory), *(str(one) for one in directory.iterdir()), str(bundled))
    with machine(*blockdev("vda", made.active)) as running:
        running.qmp("cont")
        async with running.connect() as vm:
            assert [one.name for one in (await vm.moments()).moments] == ["before"]
            for intent in (Revert("before"), Revert("before", into="new")):
                await refuses(running, vm, intent, NotInChain, "which no disk of this machine has open")
