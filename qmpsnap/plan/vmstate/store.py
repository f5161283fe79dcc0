"""Plan of a store for a checkpoint whose memory is a stream: afterwards the same QEMU can revert to it.

QEMU reads a stream only at its start. So a second QEMU of the machine, the helper, is started and loads the
stream. This plan is run on the helper, whose guest never runs: it saves its VM state into a new store. Of the
machine itself nothing changes but the record of the checkpoint, which then names the store.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection

from msgspec import structs

from qmpsnap.errors import TargetExists, Unsupported
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import command
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.moments import Moment, find_moments
from qmpsnap.model.names import digest, fit_name, job_id, node_name
from qmpsnap.model.option_hints import Hint, Named
from qmpsnap.model.record import MomentRecord, Origin
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.block import blockdev_del, open_store
from qmpsnap.plan.commands.files import create_store, seal_store
from qmpsnap.plan.commands.jobs import done_and_dismissed
from qmpsnap.plan.commands.records import keep_store
from qmpsnap.plan.commands.state import snapshot_save
from qmpsnap.plan.intent import MakeStore
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import GuestScene
from qmpsnap.plan.vmstate.branch import record_of, refuse_invalid
from qmpsnap.plan.vmstate.common import refuse_memory_place
from qmpsnap.plan.vmstate.save import own_note

_STREAM = ".memory"


def ask_again(intent: MakeStore, graph: Graph, files: Files) -> Ask:
    """Return what the planner asks once it knows the moments: about the memory file and the store's file."""
    records = [moment.record for moment in find_moments(graph, files.records).named(intent.name)]
    streams = tuple(
        record.state.file for record in records if record is not None and record.state is not None
    )
    stores = tuple(map(_store_file, streams))
    return Ask(files=(*streams, *stores), directories=tuple(map(posixpath.dirname, stores)), memories=streams)


def plan(intent: MakeStore, scene: GuestScene) -> Plan:
    """Plan the store, to be written by a helper QEMU that has loaded the checkpoint; or refuse.

    Raises:
        NotFound, AmbiguousName: When no moment has the name, or two have it.
        Unsupported: When it has no memory, or is inside the images.
        NotInChain: When a layer does not hold the moment any more.
        TargetExists: When it has a store already, or the store's file exists.
        InvalidTarget: When the memory file is missing, incomplete or another's, or the store cannot be
            created, or there may be no room for it.
    """
    moment = scene.moment(intent.name)
    record = record_of(moment)
    old = _stream_of(moment, record)
    note = own_note(record, old, scene)
    for name in record.covered:
        if name in scene.graph.disks:
            refuse_invalid(record, scene.graph.disks[name], scene)
    refuse_memory_place(scene, _store_file(old.file), option=Hint("checkpoint ", Named("memory")))
    return _replacing(
        structs.replace(old, fingerprint=note.fingerprint),
        intent,
        record,
        before=scene.graph,
        names=scene.names,
        created=scene.now,
        process=scene.machine.process,
    )


def conversion(checkpoint: Plan) -> Plan | None:
    """Return the plan of the store of a checkpoint that was only planned, as `plan` makes it afterwards.

    Returns:
        None when the checkpoint's memory does not go into a stream while the guest runs.
    """
    taken = checkpoint.record
    if taken is None or taken.state is None or taken.state.mode != "background" or taken.origin is None:
        return None
    keep = next(step for step in checkpoint.steps if step.command == "keep-moment")
    covered = {disk: files[0] for disk, files in taken.chains.items() if files}
    record = MomentRecord(
        id=taken.id,
        name=taken.name,
        created=taken.created,
        covered=Frozen(covered),
        state=taken.state,
        directory=keep.arguments["directory"],
    )
    after = checkpoint.after or checkpoint.before
    return _replacing(
        taken.state,
        MakeStore(taken.name),
        record,
        before=after,
        names=frozenset(after.nodes),
        created=taken.created,
        process=taken.origin.process,
    )


def _replacing(
    stream: KeptState,
    intent: MakeStore,
    record: MomentRecord,
    *,
    before: Graph,
    names: Collection[str],
    created: str,
    process: str,
) -> Plan:
    """Return the plan of the store that replaces a stream; the moment is that of the record."""
    like = next((file for file in record.covered.values() if file.startswith("/")), "")
    token = digest("store", record.id, stream.file, avoid=names)
    state = KeptState(
        "in-place", _store_file(stream.file), f"qmpsnap-{token}", stream.running, stream.fingerprint, token
    )
    operation_id = job_id("store", "keep", token)
    node = node_name(digest(token, "store", avoid=names), owned=True)
    result = Plan(
        op="store",
        intent=intent,
        disks=tuple(name for name in record.covered if name in before.disks),
        stages=(
            Stage("create the store", (create_store(state.partial, like),)),
            Stage(
                "write the VM state into it, by a helper QEMU that has loaded it",
                (
                    open_store(node, state.partial),
                    *done_and_dismissed(snapshot_save(operation_id, state.tag, (("", node),))),
                    blockdev_del(node),
                ),
            ),
            Stage("complete the store", (seal_store(state.partial, state.file),)),
            Stage(
                "record the store, and remove what it replaces",
                (
                    keep_store(record.directory, record.id, by=operation_id, instead_of=stream.file),
                    *finished(operation_id, record.directory),
                ),
                tidy=True,
            ),
        ),
        before=before,
    )
    return recorded(
        result,
        record.directory,
        id=operation_id,
        created=created,
        name=intent.name,
        state=state,
        # Whoever finishes the operation must not resume the guest: the operation has not paused it.
        origin=Origin(running=False, process=process),
    )


def _stream_of(moment: Moment, record: MomentRecord) -> KeptState:
    """Return the VM state of the moment if it is a stream; or refuse."""
    state = record.state
    if state is None:
        raise Unsupported(
            f"{moment.name!r} has no memory: it is a snapshot of disks alone",
            feature="a store for a snapshot without memory",
            hint=f"{command('revert', moment.name)} reverts in place, and resets the guest",
        )
    if state.mode == "in-place":
        raise TargetExists(
            f"{moment.name!r} has a store already: {state.file}",
            file=state.file,
            hint=f"{command('revert', moment.name)} reverts in place",
        )
    return state


def _store_file(stream: str) -> str:
    """Return the store's path: beside the stream, in the directory that the caller chose."""
    directory, slash, name = stream.rpartition("/")
    return f"{directory}{slash}{fit_name(name.removesuffix(_STREAM), '.vmstate.qcow2')}"
