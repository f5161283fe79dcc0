"""Cleanup and rollback that a later client derives from the steps in a record.

No step is done only because a record contains it. A file of an image is touched only after its own header
has shown what it is. Another record is changed only if it was read. Commands to QEMU are built anew, from
names that qmpsnap gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise

from qmpsnap.model.names import is_owned_node
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import AddNode, Step
from qmpsnap.plan.chain.layers import unused_nodes
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.files import Proof, remove_orphan, remove_state, retire_file
from qmpsnap.plan.commands.migration import set_capabilities, set_parameters
from qmpsnap.plan.commands.records import finish_record, keep_moment
from qmpsnap.plan.ownership import may_remove
from qmpsnap.plan.record_places import record_directories, state_questions
from qmpsnap.plan.scene import GuestScene, Scene


def backing_of(record: IntentRecord) -> dict[str, str]:
    """The backing file of each file that the operation creates; "" for a file without one."""
    backing = {step.makes: str(step.arguments.get("backing") or "") for step in record.steps if step.makes}
    copy = record.start.copy if record.start is not None else None
    return backing if copy is None else {**backing, copy.file: backing.get(copy.file) or copy.backing or ""}


def finish(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """The steps that remove the record from every directory that has it."""
    holding = [other.directory for other in scene.files.records if other.id == record.id]
    places = record_directories(record)
    return tuple(
        finish_record(place, (record.id,))
        for place in places
        if place in holding or place == record.directory
    )


def tidied(record: IntentRecord, scene: Scene, *, used: Collection[str] = ()) -> tuple[Step, ...]:
    """The cleanup steps after the operation has succeeded; repeating a step that was done does no harm.

    Args:
        record: The operation.
        scene: The machine and its files.
        used: Names of nodes that stay.
    """
    steps = [step for stage in record.stages if stage.tidy for step in stage.steps]
    again = tuple(repeated for step in steps for repeated in _again(step, record, scene, used))
    ends = any(record.id in step.arguments.get("ids", ()) for step in steps)
    return (*again, *finish(record, scene)) if ends else again


def _again(step: Step, record: IntentRecord, scene: Scene, used: Collection[str]) -> tuple[Step, ...]:
    """The steps that repeat a recorded step; none where the files or the graph do not confirm it."""
    arguments = step.arguments
    match step.command:
        case "blockdev-del":
            node = arguments["node-name"]
            is_ours = is_owned_node(node) and node in scene.graph.nodes and node not in used
            return (blockdev_del(node),) if is_ours else ()
        case "migrate-set-parameters" | "migrate-set-capabilities":
            return _set_back(step, record, scene)
        case "retire-file":
            # The chain is only what the record says: the file's own header has to confirm it.
            below = {file: base for files in record.chains.values() for file, base in pairwise(files)}
            file, policy, to = arguments["file"], arguments["policy"], arguments["to"]
            # A stream does not change the layers that it copies: somebody may have based an image on one.
            streamed = _streamed(file, below, record, scene)
            known = file in below and (file in record.folded or streamed)
            return (retire_file(file, policy, to, Proof("", below[file]), alone=streamed),) if known else ()
        case "finish-record":
            place = arguments["directory"]
            others = [other_id for other_id in arguments["ids"] if other_id != record.id]
            intents = _ids(scene, IntentRecord, place, others)
            moments = _ids(scene, MomentRecord, place, arguments.get("moments", ()))
            return (finish_record(place, intents, moments),) if intents or moments else ()
        case "keep-moment":
            return (keep_moment(record.directory, record.id, record.name),)
        case "remove-state":
            file, owner, tag = arguments["file"], arguments["id"], arguments["tag"]
            states = (
                other.state for other in _moments(scene) if other.id == owner and other.state is not None
            )
            known = any((state.file, state.tag) == (file, tag) for state in states)
            return (remove_state(file, owner, tag),) if known else ()
        case "link-records":
            places = {*record_directories(record), *state_questions(scene.graph, scene.state_dir)}
            known = arguments["place"] in places and any(
                other.directory == arguments["directory"] for other in _moments(scene)
            )
            return (_recorded(step),) if known else ()
        case "keep-store" | "keep-branch" | "keep-link" | "keep-lost" | "keep-place" | "keep-continued":
            known = _ids(scene, MomentRecord, arguments["directory"], (arguments["id"],)) != ()
            return (_recorded(step),) if known else ()
        case _:
            return ()


def _streamed(file: str, chain: Collection[str], record: IntentRecord, scene: Scene) -> bool:
    """Whether the operation was a stream that took the layer out of the chain, and nothing is based on it."""
    remaining = {left for files in record.after.values() for left in files}
    stream = record.start is not None and record.start.command == "block-stream"
    return stream and file not in remaining and not scene.files.backed_by(file, without=chain)


def _recorded(step: Step) -> Step:
    return Step(on="host", command=step.command, arguments=step.arguments, owed=True)


def _moments(scene: Scene) -> Iterator[MomentRecord]:
    return (record for record in scene.files.records if isinstance(record, MomentRecord))


def _ids(
    scene: Scene, kind: type[IntentRecord | MomentRecord], place: str, ids: Collection[str]
) -> tuple[str, ...]:
    """Those of the ids for which a record of that kind was read in that directory."""
    read = {
        record.id for record in scene.files.records if isinstance(record, kind) and record.directory == place
    }
    return tuple(record_id for record_id in ids if record_id in read)


def same_qemu(record: IntentRecord, scene: GuestScene) -> bool:
    """Whether the machine is the same QEMU process on which the operation ran; True if that is not known."""
    was, now = record.origin, scene.machine.process
    return was is not None and (not was.process or not now or was.process == now)


def _set_back(step: Step, record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """The step that restores QEMU's settings, if they differ from the recorded ones."""
    if not isinstance(scene, GuestScene) or not same_qemu(record, scene):
        return ()
    machine = scene.machine
    if step.command == "migrate-set-parameters":
        parameters = machine.parameters
        values = {
            name: value for name, value in step.arguments.items() if parameters.get(name, value) != value
        }
        return (set_parameters(values, {name: parameters[name] for name in values}),) if values else ()
    states = {entry["capability"]: entry["state"] for entry in step.arguments["capabilities"]}
    on = {name: state for name, state in states.items() if machine.capabilities.get(name, state) is not state}
    return (set_capabilities(on, {name: not state for name, state in on.items()}),) if on else ()


def free(record: IntentRecord, scene: Scene) -> tuple[str, ...]:
    """Names of the nodes that the operation opened and no disk uses."""
    opened = [step.effect.file for step in record.steps if isinstance(step.effect, AddNode)]
    return unused_nodes((*opened, *record.overlays.values()), scene)


def set_back(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """The steps that restore QEMU's settings to what they were before the operation."""
    return tuple(step for step in tidied(record, scene) if step.kind == "set")


def removed(record: IntentRecord, scene: Scene, *, keep_overlays: bool = False) -> tuple[Step, ...]:
    """The steps that remove files that the operation created and that hold no data; close `free` first.

    Args:
        record: The operation.
        scene: The machine and its files.
        keep_overlays: Whether overlays stay, because disks use them.
    """
    nodes = scene.graph.nodes
    held = {node.file for node in nodes.values()} - {nodes[name].file for name in free(record, scene)}
    backing = backing_of(record)
    steps: list[Step] = []
    for step in record.steps:
        if step.command in {"create-memory", "create-store"}:
            steps.append(remove_state(step.makes, record.id))
        elif (
            step.makes
            and not keep_overlays
            and step.makes not in held
            and may_remove(step.makes, record, scene)
        ):
            steps.append(remove_orphan(step.makes, backing[step.makes] or None))
    return tuple(steps)
