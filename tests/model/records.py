"""Records that several test files read, write and take apart, and the steps that these are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord, Origin, moment_of
from qmpsnap.model.step import DropLayers, Later, MoveRoot, Overlay, Root, Stage, Step
from qmpsnap.plan.commands.block import snapshot_sync
from qmpsnap.plan.commands.files import (
    Proof,
    create_file,
    create_overlay,
    create_store,
    retire_file,
    seal_store,
)
from qmpsnap.plan.commands.jobs import block_commit, block_stream, job_complete, mirror_job
from qmpsnap.plan.commands.records import finish_record, keep_moment

if TYPE_CHECKING:
    from collections.abc import Mapping

TIME = "2024-05-01T12:00:00+00:00"


def streaming(job: str, *, above: str, base: str | None, disk: str = "vda") -> Step:
    """What starts a stream into the layer `above`."""
    effect = DropLayers(disk, above, base)
    return block_stream(
        job=job, node="n", base_node=None, backing=None, on_error="report", speed=0, effect=effect
    )


def committing(job: str, *, above: str = "", base: str, disk: str = "vda") -> Step:
    """What starts a commit into `base` of the layers below `above`; "": of the active layer too."""
    effect = DropLayers(disk, above, base) if above else Later(root_of(disk, base))
    return block_commit(
        job=job,
        root="n",
        top_node="t",
        base_node="b",
        backing=None,
        on_error="report",
        speed=0,
        effect=effect,
    )


def mirroring(job: str, target: str, *, disk: str = "vda") -> Step:
    """What starts a mirror."""
    return mirror_job(
        job=job,
        root="n",
        replaces=None,
        copy=root_of(disk, target).root,
        sync="full",
        opens="existing",
        on_error="report",
        speed=0,
    )


def root_of(disk: str, file: str) -> MoveRoot:
    """The disk reads that file alone."""
    return MoveRoot(Root(disk, "node", file, "qcow2", None, ()))


def overlaying(overlays: Mapping[str, str], covered: Mapping[str, str]) -> tuple[Step, ...]:
    """What makes overlays, by disk, and puts them on the layers that they cover."""
    make = (
        create_overlay(file, size_bytes=1, backing=covered[disk], backing_format="raw", like=covered[disk])
        for disk, file in overlays.items()
    )
    put = (
        Overlay(disk, "c", f"{disk}-new", file, covered[disk], made_by="us")
        for disk, file in overlays.items()
    )
    return (*make, snapshot_sync(tuple(put)))


def stages(*steps: Step, tidy: tuple[Step, ...] = ()) -> tuple[Stage, ...]:
    """The stages of a plan."""
    return (Stage("do it", steps, verify=True), Stage("clean up", tidy, tidy=True))


COMMIT = IntentRecord(
    id="0a1b2c3d",
    op="commit",
    created=TIME,
    chains={"vda": ("/d/s1", "/d/base", "nbd://host/x")},
    after={"vda": ("/d/base", "nbd://host/x")},
    stages=stages(
        committing("0a1b2c3d", base="/d/base"),
        job_complete("0a1b2c3d", root_of("vda", "/d/base")),
        tidy=(
            retire_file("/d/s1", "rename", "/d/s1.invalid", Proof("qcow2", "/d/base")),
            finish_record("/d/base.qmpsnap", ("0a1b2c3d",)),
        ),
    ),
    moves=("vda",),
    folded=("/d/s1",),
    invalid=("/d/base",),
    invalid_after=("/d/s1.invalid",),
)
MIRROR = IntentRecord(
    id="0a1b2c3d",
    op="mirror",
    created=TIME,
    chains={"vda": ("/d/base",)},
    after={"vda": ("/d/copy",)},
    stages=stages(create_file("/d/copy", "/d/base"), mirroring("0a1b2c3d", "/d/copy")),
)
_OVERLAYS, _COVERED = {"vda": "/d/o", "vdb": "/d/p"}, {"vda": "/d/a", "vdb": "/d/b"}
_KEPT = keep_moment("/d/base.qmpsnap", "00000001", "before-upgrade")
SNAPSHOT = IntentRecord(
    id="00000001",
    op="snapshot",
    created=TIME,
    chains={"vda": ("/d/a", "/d/base"), "vdb": ("/d/b",)},
    after={"vda": ("/d/o", "/d/a", "/d/base"), "vdb": ("/d/p", "/d/b")},
    stages=stages(*overlaying(_OVERLAYS, _COVERED), tidy=(_KEPT,)),
    name="before-upgrade",
    moves=("vda", "vdb"),
)
STATE = KeptState(
    "in-place",
    "/d/m.vmstate.qcow2",
    "qmpsnap-00000001",
    True,
    Fingerprint("pc", 7, ("cpu",), {"vda": "virtio-blk-pci"}, {"vda": 64}),
)
CHECKPOINT = replace(
    SNAPSHOT,
    op="checkpoint",
    stages=stages(
        *overlaying(_OVERLAYS, _COVERED),
        create_store(STATE.partial, "/d/a"),
        seal_store(STATE.partial, STATE.file),
        tidy=(_KEPT,),
    ),
    state=STATE,
    origin=Origin(True, "1-2"),
)
LINK = replace(moment_of(CHECKPOINT), state=None, deleted=True, formats={"vda": ("qcow2", "raw")})
REVERTED = replace(moment_of(CHECKPOINT), branches=({"vda": "/d/r1", "vdb": "/d/r2"}, {"vda": "/d/r3"}))
