"""What a record's own steps let a later client do: tidy up after success, or take back what was made.

Nothing is done because a record says so. A file of an image is touched only after its own header has shown
what it is; what names another record has to be among the records that were read; and what is sent to QEMU is
built anew, from names that are ours.
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
    """What each image that the operation makes is backed by; "": nothing, or no image is made."""
    found = {step.makes: str(step.arguments.get("backing") or "") for step in record.steps if step.makes}
    copy = record.start.copy if record.start is not None else None
    return found if copy is None else {**found, copy.file: found.get(copy.file) or copy.backing or ""}


def finish(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What removes the record wherever it lies."""
    found = [one.directory for one in scene.files.records if one.id == record.id]
    places = record_directories(record)
    return tuple(
        finish_record(place, (record.id,)) for place in places if place in found or place == record.directory
    )


def tidied(record: IntentRecord, scene: Scene, *, used: Collection[str] = ()) -> tuple[Step, ...]:
    """What tidies up after the operation has succeeded; what was done already does no harm once more.

    Args:
        record: The operation.
        scene: What is.
        used: Names of nodes that stay.
    """
    steps = [step for stage in record.stages if stage.tidy for step in stage.steps]
    again = tuple(one for step in steps for one in _again(step, record, scene, used))
    ends = any(record.id in step.arguments.get("ids", ()) for step in steps)
    return (*again, *finish(record, scene)) if ends else again


def _again(step: Step, record: IntentRecord, scene: Scene, used: Collection[str]) -> tuple[Step, ...]:
    arguments = step.arguments
    match step.command:
        case "blockdev-del":
            node = arguments["node-name"]
            there = is_owned_node(node) and node in scene.graph.nodes and node not in used
            return (blockdev_del(node),) if there else ()
        case "migrate-set-parameters" | "migrate-set-capabilities":
            return _set_back(step, record, scene)
        case "retire-file":
            # The chain is the record's word: the file's own header has to bear it out.
            below = {file: base for files in record.chains.values() for file, base in pairwise(files)}
            file, policy, to = arguments["file"], arguments["policy"], arguments["to"]
            # A stream leaves what it has copied as it was: somebody may have based an image on it.
            streamed = _streamed(file, below, record, scene)
            known = file in below and (file in record.folded or streamed)
            return (retire_file(file, policy, to, Proof("", below[file]), alone=streamed),) if known else ()
        case "finish-record":
            place = arguments["directory"]
            others = [one for one in arguments["ids"] if one != record.id]
            intents = _ids(scene, IntentRecord, place, others)
            moments = _ids(scene, MomentRecord, place, arguments.get("moments", ()))
            return (finish_record(place, intents, moments),) if intents or moments else ()
        case "keep-moment":
            return (keep_moment(record.directory, record.id, record.name),)
        case "remove-state":
            file, owner, tag = arguments["file"], arguments["id"], arguments["tag"]
            states = (one.state for one in _moments(scene) if one.id == owner and one.state is not None)
            known = any((state.file, state.tag) == (file, tag) for state in states)
            return (remove_state(file, owner, tag),) if known else ()
        case "link-records":
            places = {*record_directories(record), *state_questions(scene.graph, scene.state_dir)}
            known = arguments["place"] in places and any(
                one.directory == arguments["directory"] for one in _moments(scene)
            )
            return (_recorded(step),) if known else ()
        case "keep-branch" | "keep-link" | "keep-lost" | "keep-place" | "keep-continued":
            known = _ids(scene, MomentRecord, arguments["directory"], (arguments["id"],)) != ()
            return (_recorded(step),) if known else ()
        case _:
            return ()


def _streamed(file: str, chain: Collection[str], record: IntentRecord, scene: Scene) -> bool:
    """Whether a stream has copied the layer, whose own bytes are as they were, and nothing is based on it."""
    kept = {left for files in record.after.values() for left in files}
    stream = record.start is not None and record.start.command == "block-stream"
    return stream and file not in kept and not scene.files.backed_by(file, without=chain)


def _recorded(step: Step) -> Step:
    return Step(on="host", command=step.command, arguments=step.arguments, owed=True)


def _moments(scene: Scene) -> Iterator[MomentRecord]:
    return (one for one in scene.files.records if isinstance(one, MomentRecord))


def _ids(
    scene: Scene, kind: type[IntentRecord | MomentRecord], place: str, ids: Collection[str]
) -> tuple[str, ...]:
    """Those of the ids of which a record of that kind was read there."""
    found = {one.id for one in scene.files.records if isinstance(one, kind) and one.directory == place}
    return tuple(one for one in ids if one in found)


def same_qemu(record: IntentRecord, scene: GuestScene) -> bool:
    """Whether the machine is the very QEMU that the operation ran on; also when that cannot be told."""
    was, now = record.origin, scene.machine.process
    return was is not None and (not was.process or not now or was.process == now)


def _set_back(step: Step, record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What puts QEMU's settings back, as far as they are not as they were."""
    if not isinstance(scene, GuestScene) or not same_qemu(record, scene):
        return ()
    machine = scene.machine
    if step.command == "migrate-set-parameters":
        parameters = machine.parameters
        values = {
            name: value for name, value in step.arguments.items() if parameters.get(name, value) != value
        }
        return (set_parameters(values, {name: parameters[name] for name in values}),) if values else ()
    states = {one["capability"]: one["state"] for one in step.arguments["capabilities"]}
    on = {name: state for name, state in states.items() if machine.capabilities.get(name, state) is not state}
    return (set_capabilities(on, {name: not state for name, state in on.items()}),) if on else ()


def free(record: IntentRecord, scene: Scene) -> tuple[str, ...]:
    """Names of the nodes that the operation opened and no disk uses."""
    opened = [step.effect.file for step in record.steps if isinstance(step.effect, AddNode)]
    return unused_nodes((*opened, *record.overlays.values()), scene)


def set_back(record: IntentRecord, scene: Scene) -> tuple[Step, ...]:
    """What puts QEMU's settings back to what they were before."""
    return tuple(step for step in tidied(record, scene) if step.kind == "set")


def removed(record: IntentRecord, scene: Scene, *, keep_overlays: bool = False) -> tuple[Step, ...]:
    """What removes the files that the operation made, once `free` are closed; only what has no data.

    Args:
        record: The operation.
        scene: What is.
        keep_overlays: Whether overlays stay, because disks have them.
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
