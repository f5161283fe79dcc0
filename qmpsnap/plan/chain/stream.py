"""Plan of a stream: backing data goes up into a layer."""

from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.errors import NotInChain, Unsupported
from qmpsnap.model.disk_names import find_disk
from qmpsnap.model.files import Ask
from qmpsnap.model.graph import Disk, Graph
from qmpsnap.model.names import digest, job_id
from qmpsnap.model.step import DropLayers, Stage
from qmpsnap.plan.chain.invalidation import streamed
from qmpsnap.plan.chain.layers import (
    delete_owned,
    flush_layer,
    layer_index,
    recorded_like,
    refuse_stream_of_shorter,
)
from qmpsnap.plan.chain.lineage import kept_found
from qmpsnap.plan.checks.disk import ask_viewed, refuse_busy, refuse_empty, refuse_read_only, refuse_viewed
from qmpsnap.plan.checks.encryption import refuse_clear_data
from qmpsnap.plan.checks.opened import refuse_inner, refuse_lost, refuse_reopen
from qmpsnap.plan.commands.block import read_only_again
from qmpsnap.plan.commands.jobs import block_stream, copied_and_finalized
from qmpsnap.plan.effect import apply_all
from qmpsnap.plan.intent import Stream
from qmpsnap.plan.plan import Plan
from qmpsnap.plan.record_places import state_place
from qmpsnap.plan.recording import finished, recorded
from qmpsnap.plan.scene import Scene


def ask(intent: Stream, graph: Graph, _state_dir: str) -> Ask:
    """What the planner wants to know: whether a layer below the active one is being read."""
    return Ask() if intent.into is None else ask_viewed(find_disk(graph, intent.disk).layers)


def plan(intent: Stream, scene: Scene) -> Plan:
    """Plan one block-stream; or refuse.

    Raises:
        NotFound: When there is no such disk.
        NotInChain: When a layer is not in its chain, or `base` is not below `into`.
        Busy: When a job holds the chain, or a client of ours reads a moment from the layer.
        Unsupported: When the layer cannot take data, there is nothing below it to copy, the disk is
            read-only, or a layer is so short that old bytes would be read again.
    """
    disk = refuse_empty(find_disk(scene.graph, intent.disk))
    into, base = _into_and_base(intent, scene, disk)
    receiver, gone, below = disk.layers[into], disk.layers[into + 1 : base], disk.layers[base:]
    refuse_clear_data(gone, receiver.file, plain=intent.plain, encrypted=receiver.encrypted)
    refuse_stream_of_shorter(disk, into=into, base=base)
    refuse_inner(disk, gone)
    refuse_reopen(scene, disk, receiver)

    job = job_id("stream", "keep", digest("stream", disk.name, disk.files, into, base, avoid=scene.names))
    backing = recorded_like(scene, receiver, below)
    start = block_stream(
        job=job,
        node=receiver.node,
        base_node=below[0].node if below else None,
        backing=backing,
        on_error=intent.on_error,
        speed=intent.speed,
        effect=DropLayers(disk.name, receiver.file, below[0].file if below else None, backing),
    )
    # The record has to be found beside the base image of before and of after.
    place = state_place(scene, disk if below else replace(disk, layers=disk.layers[: into + 1]))
    files = tuple(layer.file for layer in gone)
    moments = streamed(scene.files.records, disk.name, into=receiver.file, gone=files)
    stream = copied_and_finalized(
        start,
        filled=flush_layer(scene, receiver, gone[0], filled=True),
        named=flush_layer(scene, receiver, below[0] if below else None),
    )
    frozen = into > 0 and receiver.read_only and scene.features.human_monitor
    again = (read_only_again(receiver.node),) if frozen else ()
    found, unfound = kept_found(scene, apply_all(scene.graph, stream))
    valid = (f"{file} stays valid, but is no longer needed by {disk.name}" for file in files)
    plan = Plan(
        op="stream",
        intent=intent,
        disks=(disk.name,),
        stages=(
            Stage(f"stream into {receiver.file}", stream, verify=True),
            Stage(
                "clean up",
                (*again, *delete_owned(gone), *moments, *found, *finished(job, place)),
                tidy=True,
            ),
        ),
        before=scene.graph,
        notes=(*valid, *unfound),
    )
    return recorded(plan, place, id=job, created=scene.now)


def _into_and_base(intent: Stream, scene: Scene, disk: Disk) -> tuple[int, int]:
    """Indexes of the layer that receives the data and of the one that stays below; or refuse."""
    refuse_lost(scene, (disk,))
    scene.features.need("block-stream", "job-finalize", "job-cancel")
    into = 0 if intent.into is None else layer_index(scene, disk, intent.into)
    base = len(disk.layers) if intent.base is None else layer_index(scene, disk, intent.base)
    receiver = disk.layers[into]
    if base <= into:
        raise NotInChain(
            f"base {disk.layers[base].file} is not below {receiver.file}", hint="base must be the lower layer"
        )
    refuse_read_only(disk, "stream")
    refuse_busy(scene, disk)
    refuse_viewed(scene, [receiver.file])
    if base == into + 1:
        below = f"just above {disk.layers[base].file}" if base < len(disk.layers) else "the base image"
        raise Unsupported(f"there is nothing to stream: {receiver.file} is {below}", feature="empty stream")
    if receiver.format == "raw":
        raise Unsupported(f"{receiver.file} is raw and has no backing file", feature="stream into raw")
    return into, base
