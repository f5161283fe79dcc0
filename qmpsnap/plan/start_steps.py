"""Steps that start a job which copies: stream, commit, mirror. Part of the vocabulary in steps.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qmpsnap.plan.job_steps import QmpStep

if TYPE_CHECKING:
    from qmpsnap.plan.intent import OnError, Sync

__all__ = ["Start", "StartCommit", "StartMirror", "StartStream"]

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class StartStream(QmpStep):
    """Copy backing data up into a layer. QAPI: block-stream (block-core.json).

    The job waits before its end until it is finalized: QEMU would name the new backing file in the
    layer's header before all of the data is on the disk. It dismisses itself, other than those of
    commit and mirror: QEMU 7.2 crashes when anybody asks for its block nodes while a concluded stream
    job waits for its dismissal (docs/explanation/qemu.md).

    Attributes:
        job_id: The job's id.
        disk: The disk's name.
        node: node-name of the layer that receives.
        file: Its path.
        base_node: node-name of the layer that stays below, or None.
        base_file: Its path, or None.
        backing: Name to record as backing file instead of the base's path, or None.
        on_error: The job's error policy.
        speed: Limit in bytes/s; 0: none.
    """

    job_id: str
    disk: str
    node: str
    file: str
    base_node: str | None
    base_file: str | None
    backing: str | None
    on_error: OnError
    speed: int
    command: ClassVar[str] = "block-stream"

    @property
    def arguments(self) -> Arguments:
        return _without_none(
            {
                "job-id": self.job_id,
                "device": self.node,
                "base-node": self.base_node,
                "backing-file": self.backing,
                "on-error": self.on_error,
                "speed": self.speed,
                "auto-finalize": False,
            }
        )


@dataclass(frozen=True, slots=True)
class StartCommit(QmpStep):
    """Copy layers' data down into the base. QAPI: block-commit (block-core.json).

    Without the active layer the job waits before its end until it is finalized: QEMU flushes the base
    only where it opens that read-only again, and some operations leave a base writable
    (docs/explanation/qemu.md). With it, it flushes the base itself.

    Attributes:
        job_id: The job's id.
        disk: The disk's name.
        root: node-name of the disk's root.
        top_node: node-name of the newest layer to fold.
        top_file: Its path.
        base_node: node-name of the layer that receives.
        base_file: Its path.
        active: Whether top is the active layer, so that the job waits at READY.
        backing: Name to record in top's overlay instead of the base's path, or None.
        on_error: The job's error policy.
        speed: Limit in bytes/s; 0: none.
    """

    job_id: str
    disk: str
    root: str
    top_node: str
    top_file: str
    base_node: str
    base_file: str
    active: bool
    backing: str | None
    on_error: OnError
    speed: int
    command: ClassVar[str] = "block-commit"

    @property
    def arguments(self) -> Arguments:
        return _without_none(
            {
                "job-id": self.job_id,
                "device": self.root,
                "top-node": self.top_node,
                "base-node": self.base_node,
                "backing-file": self.backing,
                "on-error": self.on_error,
                "speed": self.speed,
                "auto-finalize": None if self.active else False,
                "auto-dismiss": False,
            }
        )


@dataclass(frozen=True, slots=True)
class StartMirror(QmpStep):
    """Copy a disk elsewhere and follow its writes. QAPI: drive-mirror (block-core.json).

    Attributes:
        job_id: The job's id.
        disk: The disk's name.
        root: node-name of the disk's root.
        replaces: node-name of the active layer when a filter stands above it, or None.
        target: The copy's path.
        format: The copy's format.
        node: node-name that the copy gets.
        sync: "full", "top" or "none".
        existing: Whether QEMU takes the file as it is; else it formats it.
        on_error: The job's error policy, of source and target.
        speed: Limit in bytes/s; 0: none.
    """

    job_id: str
    disk: str
    root: str
    replaces: str | None
    target: str
    format: str
    node: str
    sync: Sync
    existing: bool
    on_error: OnError
    speed: int
    command: ClassVar[str] = "drive-mirror"

    @property
    def arguments(self) -> Arguments:
        return _without_none(
            {
                "job-id": self.job_id,
                "device": self.root,
                "replaces": self.replaces,
                "target": self.target,
                "format": self.format,
                "node-name": self.node,
                "sync": self.sync,
                "mode": "existing" if self.existing else "absolute-paths",
                "on-source-error": self.on_error,
                "on-target-error": self.on_error,
                "speed": self.speed,
                "auto-dismiss": False,
            }
        )


Start = StartStream | StartCommit | StartMirror


def _without_none(arguments: Arguments) -> Arguments:
    return {name: value for name, value in arguments.items() if value is not None}
