"""Puts a step that writes the plan's record before all others, so that any client can finish or undo it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from msgspec import structs

from qmpsnap.model.graph import Chains
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.record import IntentRecord, Member, Origin
from qmpsnap.model.step import Stage, Step
from qmpsnap.plan.commands.records import finish_record, record_of, write_record
from qmpsnap.plan.plan import Plan


def recorded(
    plan: Plan,
    *places: str,
    id: str,  # noqa: A002 - a record's word
    created: str,
    name: str = "",
    state: KeptState | None = None,
    origin: Origin | None = None,
    member: Member | None = None,
) -> Plan:
    """The plan, with a step before all others that writes its record.

    The last stage of the plan removes the record, or turns it into the record of a moment. If it does
    neither, the record stays.

    Args:
        plan: The plan; its notes are recorded too.
        places: Directories that get the record; "" is ignored. Without a directory there is no record.
        id: The operation's id, which is also the id of its job.
        created: ISO 8601 time in UTC.
        name: The moment's name, or "".
        state: The file of VM state that is saved or loaded, or None.
        origin: State of the guest before the operation, if that pauses it or changes its memory; else None.
        member: Which machine of a group it is, if a moment of all of them is taken; else None.
    """
    where = _places(places)
    if not where:
        return plan
    record = IntentRecord(
        id=id,
        op=plan.op,
        created=created,
        chains=local_chains(plan.chains_before),
        after=local_chains(plan.chains_after),
        formats={
            disk: tuple(
                layer.format for layer in plan.before.disks[disk].layers if layer.file.startswith("/")
            )
            for disk in plan.disks
        },
        stages=plan.stages,
        name=name,
        state=state,
        origin=origin,
        moves=plan.moves,
        folded=local(plan.folded),
        invalid=local(plan.invalid_if_stopped),
        invalid_after=local(plan.invalid),
        notes=plan.notes,
        prepared=plan.prepared,
        memory=plan.memory,
        member=member,
    )
    write = tuple(write_record(place, record) for place in where)
    first, *more = plan.stages
    if first.verify:
        return replace(plan, stages=(Stage("write the record", write), first, *more))
    return replace(plan, stages=(structs.replace(first, steps=(*write, *first.steps)), *more))


def recorded_anew(plan: Plan) -> Plan:
    """The plan with a record that also has the stages and notes that were added after `recorded`."""
    without_record = [
        structs.replace(stage, steps=tuple(step for step in stage.steps if record_of(step) is None))
        for stage in plan.stages
    ]
    stages = tuple(stage for stage in without_record if stage.steps)

    def updated(step: Step) -> Step:
        record = record_of(step)
        if record is None:
            return step
        record = structs.replace(record, stages=stages, notes=plan.notes)
        return write_record(step.arguments["directory"], record)

    return replace(
        plan,
        stages=tuple(structs.replace(stage, steps=tuple(map(updated, stage.steps))) for stage in plan.stages),
    )


def finished(id: str, *places: str) -> tuple[Step, ...]:  # noqa: A002 - a record's word
    """The steps that remove the record from each of the directories; "" is ignored."""
    return tuple(finish_record(place, (id,)) for place in _places(places))


def local(files: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are files on the host: records name nothing else."""
    return tuple(file for file in files if file.startswith("/"))


def local_chains(chains: Chains) -> Chains:
    """The chains, each as `local` returns it."""
    return {disk: local(files) for disk, files in chains.items()}


def _places(places: tuple[str, ...]) -> list[str]:
    return [place for place in dict.fromkeys(places) if place]
