"""Plan of a stream: backing data goes up into a layer."""

from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.errors import NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Graph
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.chain.invalidation import streamed, unfound
from qmpsnap.plan.chain.layers import delete_owned, layer_index, recorded_like, refuse_stream_of_shorter
from qmpsnap.plan.checks.busy import refuse_busy
from qmpsnap.plan.checks.disk import refuse_empty, refuse_read_only
from qmpsnap.plan.checks.encryption import refuse_clear_data
from qmpsnap.plan.checks.opened import refuse_lost, refuse_reopen
from qmpsnap.plan.commands.block import flush
from qmpsnap.plan.commands.jobs import await_job, block_stream, job_finalize
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.effect import apply_all
from qmpsnap.plan.intent import Stream
from qmpsnap.plan.plan import Plan, Stage
from qmpsnap.plan.record_places import local_chains, state_place, state_questions, with_parents
from qmpsnap.plan.scene import Scene
from qmpsnap.plan.step import DropLayers


def ask(intent: Stream, graph: Graph, *, state_dir: str = "") -> Ask:
    """What the planner wants to know about the file system: the moments' names."""
    refuse_empty(find_disk(graph, intent.disk))
    records = state_questions(graph, state_dir)
    return Ask(directories=with_parents(records), records=records)


def plan(intent: Stream, scene: Scene) -> Plan:
    """Plan one block-stream; or refuse.

    Raises:
        NotFound: When the disk is not there.
        NotInChain: When a layer is not in its chain, or `base` is not below `into`.
        Busy: When a job holds the chain.
        Unsupported: When the layer cannot take data, nothing stands below it, the disk is read-only, or a
            layer is so short that old bytes would be read again.
    """
    disk = refuse_empty(find_disk(scene.graph, intent.disk))
    refuse_lost(scene, (disk,))
    scene.features.need("block-stream", "job-finalize", "job-cancel", "human-monitor-command")
    into = 0 if intent.into is None else layer_index(scene, disk, intent.into)
    base = len(disk.layers) if intent.base is None else layer_index(scene, disk, intent.base)
    receiver = disk.layers[into]
    if base <= into:
        raise NotInChain(
            f"base {disk.layers[base].file} is not below {receiver.file}", hint="base must be the lower layer"
        )
    refuse_read_only(disk, "stream")
    refuse_busy(scene, disk)
    if base == into + 1:
        below = f"just above {disk.layers[base].file}" if base < len(disk.layers) else "the base image"
        raise Unsupported(f"there is nothing to stream: {receiver.file} is {below}", feature="empty stream")
    if receiver.format == "raw":
        raise Unsupported(f"{receiver.file} is raw and has no backing file", feature="stream into raw")

    refuse_clear_data(
        disk.layers[into + 1 : base], receiver.file, plain=intent.plain, encrypted=receiver.encrypted
    )
    refuse_stream_of_shorter(disk, into=into, base=base)
    refuse_reopen(scene, disk, receiver)
    keeps = disk.layers[base] if base < len(disk.layers) else None
    token = digest("stream", disk.name, disk.files, into, base, avoid=scene.names)
    job = job_id("stream", "keep", token)
    backing = recorded_like(scene, receiver, disk.layers[base:])
    start = block_stream(
        job=job,
        node=receiver.node,
        base_node=keeps.node if keeps else None,
        backing=backing,
        on_error=intent.on_error,
        speed=intent.speed,
        effect=DropLayers(disk.name, receiver.file, keeps.file if keeps else None, backing),
    )
    gone = disk.layers[into + 1 : base]
    # The record has to be found beside the base image of before and of after.
    place = state_place(scene, disk if keeps else replace(disk, layers=disk.layers[: into + 1]))
    after = (*disk.files[: into + 1], *disk.files[base:])
    record = IntentRecord(
        id=job,
        op="stream",
        created=scene.now,
        chains=local_chains({disk.name: disk.files}),
        after=local_chains({disk.name: after}),
        disk=disk.name,
    )
    stages = [
        Stage("write the record", (write_record(place, record),) if place else ()),
        Stage(
            f"stream into {receiver.file}",
            (
                start,
                await_job(job, "pending"),
                flush(receiver.node),
                job_finalize(job),
                await_job(job, "concluded"),
                flush(receiver.node),  # its header names another backing file now
            ),
            verify=True,
        ),
        Stage(
            "clean up",
            (
                *delete_owned(gone),
                *streamed(
                    scene.files.records,
                    disk.name,
                    into=receiver.file,
                    gone=tuple(layer.file for layer in gone),
                ),
                *((finish_record(place, (record.id,)),) if place else ()),
            ),
            tidy=True,
        ),
    ]
    stages = [stage for stage in stages if stage.steps]
    graph = apply_all(scene.graph, [step for stage in stages for step in stage.steps])
    valid = tuple(f"{layer.file} stays valid, but is no longer needed by {disk.name}" for layer in gone)
    return Plan(
        op="stream",
        intent=intent,
        disks=(disk.name,),
        stages=tuple(stages),
        before=scene.graph,
        after=graph,
        notes=(*valid, *unfound(scene, graph)),
    )
