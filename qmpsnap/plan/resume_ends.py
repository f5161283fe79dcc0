"""What is planned in any case for an interrupted operation on a guest: its job and its migration end.

The guest is resumed if it ran before and only the operation keeps it paused. What another client does with
the machine meanwhile is left alone: a guest that was migrated away must not run here, too.
"""

from __future__ import annotations

from qmpsnap.model.job import ENDED
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Step
from qmpsnap.plan.checks.disk import refuse_migrating
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.migration import ending, migrate_cancel, release_file
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.ownership import ran_here
from qmpsnap.plan.recorded_steps import free, same_qemu
from qmpsnap.plan.scene import GuestScene, Scene
from qmpsnap.plan.vmstate.common import file_number, way_of

# Run states in which only our operation keeps the guest from running, or the end of its migration, which is
# awaited before. In any other state it has stopped by itself, even while a migration runs: at a shutdown for
# instance, after which QEMU refuses `cont`.
_OURS = frozenset({"paused", "postmigrate", "finish-migrate"})


def end_and_resume(record: IntentRecord, scene: Scene, *, resumes: bool = True) -> tuple[Step, ...]:
    """The steps that end the job and the migration, resume the guest, and close unused nodes.

    Raises:
        Busy: While another client migrates the machine.
    """
    ends = ends_job(record, scene)
    if isinstance(scene, GuestScene):
        if _is_of_others(record, scene):
            refuse_migrating(scene.machine.guest)
        ends = (*ends, *_ends_migration(record, scene), *(_resume_guest(record, scene) if resumes else ()))
    return (*ends, *map(blockdev_del, free(record, scene)))


def ends_job(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """The steps that await and dismiss the operation's job on VM state, which cannot be cancelled."""
    job = next((job for job in scene.jobs if job.id == record.id), None)
    if job is None:
        return ()
    wait = () if job.status in ENDED else (await_job(job.id, "concluded"),)
    return (*wait, job_dismiss(job.id))


def _ends_migration(record: IntentRecord, scene: GuestScene) -> tuple[Step, ...]:
    """The steps that end the migration, and release the file that QEMU was given."""
    machine, state = scene.machine, record.state
    passed = any(step.kind == "pass-file" for step in record.steps)
    if state is None or not passed or not same_qemu(record, scene):
        return ()
    way = way_of(machine)
    end = migrate_cancel(ending(way, background=state.mode == "background"))
    return (*((end,) if machine.migrating else ()), release_file(file_number(record.id[-8:]), way))


def _resume_guest(record: IntentRecord, scene: GuestScene) -> tuple[Step, ...]:
    """The step that resumes a guest that ran before, if only the operation keeps it paused."""
    machine = scene.machine
    if record.origin is None or not record.origin.running or not same_qemu(record, scene):
        return ()
    # Neither a cancelled nor a completed migration resumes the guest by itself.
    halted = machine.status in _OURS and not migrated_away(record, scene)
    # Before a disk has moved, only a load leaves the guest in this state.
    loads = record.loads and record.state is not None
    halted |= loads and machine.status == FOR_A_LOAD and ran_here(record, machine.process)
    return (cont(),) if halted else ()


def _is_of_others(record: IntentRecord, scene: GuestScene) -> bool:
    """Whether the migration that is running, or was the last one, is another client's.

    One of ours writes to the operation's file, and does so before QEMU calls it active.
    """
    state, migration = record.state, scene.machine.migration
    if migration in {"none", "setup"} or not same_qemu(record, scene):
        return False
    if state is None or state.mode == "in-place" or record.loads:
        return True
    facts = [scene.files.files.get(file) for file in (state.partial, state.file)]
    return not any(fact is not None and fact.size for fact in facts)


def migrated_away(record: IntentRecord, scene: GuestScene) -> bool:
    """Whether another client's migration has ended, and the guest, which ran before, may run elsewhere."""
    ran = record.origin is not None and record.origin.running
    away = scene.machine.status == "postmigrate" and ran and same_qemu(record, scene)
    background = record.state is not None and record.state.mode == "background"  # which does not end so
    return away and (background or _is_of_others(record, scene))
