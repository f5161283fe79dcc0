"""Plan of what is left of a checkpoint, or of a save, whose client went away.

By `stop` and `in-place` the memory is written before the overlays are put on: where they are, the rest is
done, if QEMU is certainly the one that wrote it: of another's file nobody knows whether it is whole. By
`background` it comes last, and nobody saw whether QEMU had to stop the guest twice: it is given up,
and the overlays stay. A memory that got its name is whole, and is kept as long as its layers are there.
Either way the guest runs if it ran, and QEMU is set as it was.
"""

from __future__ import annotations

from qmpsnap.model.hints import command
from qmpsnap.model.job import ENDED
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import FOR_A_LOAD
from qmpsnap.model.memory import MemoryFact
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan import ownership
from qmpsnap.plan.chain.layers import unused_nodes
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.files import remove_orphan, remove_state, seal_memory, seal_store
from qmpsnap.plan.commands.jobs import await_job, job_dismiss
from qmpsnap.plan.commands.migration import (
    await_closed,
    migrate_cancel,
    release_file,
    set_capabilities,
    set_parameters,
)
from qmpsnap.plan.commands.records import finish_record, keep_moment
from qmpsnap.plan.commands.state import cont
from qmpsnap.plan.ownership import may_remove, ran_here
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.vmstate.common import file_number, machine_of, way_of

# Run states in which nothing but we keep the guest from running.
_OURS = frozenset({"paused", "postmigrate"})


def plan(record: IntentRecord, scene: Scene) -> Plan:
    """Plan what is left of the operation of that record."""
    state = record.state
    assert state is not None  # noqa: S101 - a checkpoint's record has one
    if ownership.has_moment(record, scene.files.records):
        return _only_finish(record, scene, f"checkpoint {record.name!r} is complete")
    later = ownership.superseded_by(record, scene.files.records)
    if later is not None:
        return _only_finish(record, scene, f"a later operation uses the overlays of {record.id}: {later.id}")
    disks = tuple(disk for disk in record.chains if disk in scene.graph.disks)
    taken = any(
        file in scene.graph.disks[disk].files for disk, file in record.overlays.items() if disk in disks
    )
    whole = _is_whole(state, record, scene)
    keeps = _can_be_kept(record, scene) if whole else taken and _can_be_sealed(state, record, scene)
    steps = [*ends_job(record, scene), *_ends_migration(state, record, scene)]
    if not (record.op == "save" and keeps):
        steps += goes_on(record, scene)
    steps += _free(record, state, scene)
    tidy = list(_settings(record, scene))
    rest = ""
    if keeps:
        steps += _seal(state, record, whole=whole)
        tidy.append(
            keep_moment(record.directory, record.id, record.name)
            if record.op == "checkpoint"
            else finish_record(record.directory, (record.id,))
        )
    else:
        rest = "was not complete; its files are removed"
        if taken and state.mode != "background" and not ran_here(record, machine_of(scene).process):
            rest = "was not completed by the QEMU that wrote its memory, so the memory is discarded"
        if not taken:
            tidy += _orphans(record, scene)
        whole_one = (remove_state(state.file, record.id, state.tag),) if whole else ()
        tidy += [
            remove_state(state.partial, record.id),
            *whole_one,
            finish_record(record.directory, (record.id,)),
        ]
    what = f"checkpoint {record.name!r}" if record.op == "checkpoint" else f"{state.file}"
    notes = [f"{what} {rest or 'is complete'}"]
    if taken and not keeps:
        notes += [
            f"the overlay {file} of {disk} stays, because the guest writes to it: "
            f"{command('commit', disk, '--top', file, '--base', record.chains[disk][0])} commits it"
            for disk, file in record.overlays.items()
        ]
    return Plan(
        op=record.op,
        intent=None,
        disks=disks,
        stages=(
            Stage(f"end {record.op}", tuple(steps), verify=True),
            Stage("clean up", tuple(tidy), tidy=True),
        ),
        before=scene.graph,
        after=scene.graph,
        moves=tuple(record.overlays) if taken else (),
        notes=tuple(notes),
    )


def _only_finish(record: IntentRecord, scene: Scene, note: str) -> Plan:
    """The record alone is left: its files and its overlays are a moment's, or another operation's."""
    return Plan(
        op=record.op,
        intent=None,
        disks=tuple(disk for disk in record.chains if disk in scene.graph.disks),
        stages=(Stage("remove the record", (finish_record(record.directory, (record.id,)),), tidy=True),),
        before=scene.graph,
        after=scene.graph,
        notes=(note,),
    )


def _is_whole(state: KeptState, record: IntentRecord, scene: Scene) -> bool:
    """Whether the file has its name, and is of this very operation."""
    fact = scene.files.memories.get(state.file)
    if fact is None or _may_be_foreign(fact):
        return False
    return state.tag in fact.tags if state.tag else fact.note is not None and fact.note.id == record.id


def _can_be_kept(record: IntentRecord, scene: Scene) -> bool:
    """Whether the layers are there yet to which the memory belongs."""
    return all(scene.files.files[record.chains[disk][0]].taken for disk in record.overlays)


def _can_be_sealed(state: KeptState, record: IntentRecord, scene: Scene) -> bool:
    """Whether an unfinished file is certainly whole, and nothing is in its way."""
    files = scene.files.files
    return (
        state.mode != "background"
        and ran_here(record, machine_of(scene).process)
        and files[state.partial].taken
        and not files[state.file].taken
        and not _may_be_foreign(scene.files.memories[state.partial])
    )


def _may_be_foreign(fact: MemoryFact) -> bool:
    """Whether somebody else may have put it there: who owns it is not written down before it is whole."""
    return bool(fact.foreign(user=None if fact.exposed else fact.user))


def same_qemu(record: IntentRecord, scene: Scene) -> bool:
    """Whether the machine is the very QEMU that the operation ran on; also when that cannot be told."""
    was, now = record.was, machine_of(scene).process
    return was is not None and (not was.process or not now or was.process == now)


def goes_on(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What lets a guest run on that ran, and that only the operation keeps from it."""
    machine = machine_of(scene)
    if record.was is None or not record.was.running or not same_qemu(record, scene):
        return ()
    # A migration that is cancelled lets nothing run by itself; neither does one that has ended.
    halted = machine.status in _OURS or (machine.migrating and not machine.running)
    # Nothing else of ours leaves it so before a disk has moved.
    halted |= _stops_for_load(record) and machine.status == FOR_A_LOAD and ran_here(record, machine.process)
    return (cont(),) if halted else ()


def _stops_for_load(record: IntentRecord) -> bool:
    """Whether it is of an operation that stops a guest as QEMU does it for a load."""
    return record.op == "revert" and record.state is not None


def ends_job(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What ends the job of the operation, which cannot be cancelled."""
    job = next((one for one in scene.jobs if one.id == record.id), None)
    if job is None:
        return ()
    wait = () if job.status in ENDED else (await_job(job.id, "concluded"),)
    return (*wait, job_dismiss(job.id))


def _ends_migration(state: KeptState, record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What ends the migration, and takes back the file that QEMU was given."""
    machine = machine_of(scene)
    if state.mode == "in-place" or not same_qemu(record, scene):
        return ()
    way = way_of(machine)
    may_stop = state.mode != "background" or way == "fdset"
    cancel = (migrate_cancel(wait=not may_stop),) if machine.migrating else ()
    return (*cancel, release_file(file_number(record.id[-8:]), way))


def _free(record: IntentRecord, state: KeptState, scene: Scene) -> tuple[Step, ...]:
    """What closes the store, wherever it is open, and overlays that no disk got."""
    stores = (
        node.name
        for node in scene.graph.nodes.values()
        if node.file == state.partial and node.driver == "qcow2"
    )
    return tuple(map(blockdev_del, (*stores, *unused_nodes(record.overlays.values(), scene))))


def _seal(state: KeptState, record: IntentRecord, *, whole: bool) -> tuple[Step, ...]:
    if whole:
        return ()
    if state.mode == "in-place":
        return (seal_store(state.partial, state.file),)
    return (
        await_closed(state.partial),
        seal_memory(
            state.partial,
            state.file,
            id=record.id,
            name=record.name,
            running=state.running,
            fingerprint=state.fingerprint,
        ),
    )


def _settings(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What puts QEMU's settings back, as far as they are not as they were."""
    was, machine = record.was, machine_of(scene)
    if was is None or not same_qemu(record, scene):
        return ()
    steps: list[Step] = []
    parameters = {
        name: value for name, value in was.parameters.items() if machine.parameters.get(name) != value
    }
    if parameters:
        steps.append(set_parameters(parameters, {name: machine.parameters[name] for name in parameters}))
    capabilities = {
        name: on for name, on in was.capabilities.items() if machine.capabilities.get(name) is not on
    }
    if capabilities:
        steps.append(set_capabilities(capabilities, {name: not on for name, on in capabilities.items()}))
    return tuple(steps)


def _orphans(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    held = {node.file for node in scene.graph.nodes.values()}
    held -= {scene.graph.nodes[name].file for name in unused_nodes(record.overlays.values(), scene)}
    return tuple(
        remove_orphan(file, record.chains[disk][0])
        for disk, file in record.overlays.items()
        if file in record.made
        and file not in held
        and record.chains.get(disk)
        and may_remove(file, record, scene)
    )
