"""The part of a VM that speaks of moments: list them, take them inside the images, delete them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.arguments import texts
from qmpsnap.model.moments import find_moments, state_places
from qmpsnap.plan import resume
from qmpsnap.plan.intent import CheckpointInternal, Delete, SnapshotInternal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmpsnap.model.moments import Moments
    from qmpsnap.plan.intent import Intent, Via
    from qmpsnap.run.outcome import Done, Hooks
    from qmpsnap.run.start_check import StartCheck
    from qmpsnap.run.target import Target

__all__ = ["MomentVerbs"]


class MomentVerbs:
    """Moments of one machine; a part of VM."""

    _target: Target
    _state_dir: str
    _started: StartCheck

    if TYPE_CHECKING:

        async def _do(self, intent: Intent, hooks: Hooks | None, *, wait: bool = False) -> Done: ...

    async def moments(self) -> Moments:
        """Every moment that the disks hold, as of now: external ones and internal ones.

        External ones are known by our records, which lie beside the images: where QEMU's files are not
        visible from here, `records_seen` is False and only internal ones are listed.

        Raises:
            LinkLost: When the link is gone.

        QAPI: query-named-block-nodes, SnapshotInfo (block-core.json).
        """
        graph = await self._target.graph()
        ask = replace(resume.ask(graph, state_dir=self._state_dir), states=state_places(graph))
        files = await self._target.look(ask, graph)
        await self._started.warnings(graph)
        return find_moments(graph, files.records, records_seen=files.shared, states=files.states)

    async def snapshot_internal(
        self, name: str, *, disks: Sequence[str] = (), wait: bool = False, hooks: Hooks | None = None
    ) -> Done:
        """Take a snapshot inside the active layers of disks, all at one instant; no chain changes.

        After success each image holds the moment under that name, and the guest goes on in the same
        image. After failure none of them does. Cancelled before the transaction was sent, nothing is
        left; cancelled after it, the snapshot stands.

        Args:
            name: The moment's name.
            disks: Disks in any spelling; none: every writable disk with a medium.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            BadName: When the name is outside the grammar.
            TargetExists: When a moment of the machine has the name.
            Unsupported: When a disk is no qcow2 image, read-only or empty.
            Busy: When a job holds one of the chains.
            NotFound, AmbiguousName: When a disk is not there, or its name fits two.
            CommandFailed: When QEMU refuses the transaction; nothing was changed.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: transaction, blockdev-snapshot-internal-sync (block-core.json).
        """
        return await self._do(SnapshotInternal(name, texts("disks", disks)), hooks, wait=wait)

    async def delete(
        self, name: str, *, via: Via | None = None, wait: bool = False, hooks: Hooks | None = None
    ) -> Done:
        """Delete a moment: an internal one, from each disk that has it, or an external checkpoint.

        Of an external checkpoint the file of VM state and the name go; its layers stay, and a note says
        how they are folded.

        After success no active layer has a snapshot of that name. One disk comes after the other: after
        a failure `changed` says whether one was deleted, and to delete again takes those that are left.
        Cancelled before the first command was sent, nothing is changed; after it, the rest is done.

        Args:
            name: The moment's name, also one outside our grammar that somebody else chose.
            via: "hmp" or "jobs" forces a way. None: one of disks alone goes disk after disk; one with VM
                state through the human monitor when every writable disk has it, and else through a job.
            wait: Whether to wait, without a limit, for jobs that are in the way; see `when_idle`.
            hooks: What the caller wants to be told.

        Raises:
            NotFound: When no moment has the name.
            AmbiguousName: When two have it.
            Unsupported: When it is an external one of disks alone, or the machine's state was saved and it
                did not run since.
            NotInChain: When it is inside an image below an active layer.
            Busy: When a job holds one of the chains.
            CommandFailed, JobFailed: When QEMU refuses.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: blockdev-snapshot-delete-internal-sync (block-core.json), snapshot-delete (migration.json).
        HMP: delvm.
        """
        return await self._do(Delete(name, via), hooks, wait=wait)

    async def checkpoint_internal(
        self,
        name: str,
        *,
        leave: Sequence[str] = (),
        via: Via | None = None,
        wait: bool = False,
        plain: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Keep VM state and the writable disks, of one instant, inside the images.

        The guest stands still meanwhile; a running one runs on, a paused one stays so. After failure the
        images hold nothing of it. Cancelled once it was sent, it is taken; before, nothing is left.

        Args:
            name: The checkpoint's name.
            leave: Writable disks that take no part, in any spelling.
            via: "hmp" or "jobs" forces a way. None: through the human monitor when every writable disk
                takes part, through a job when one is left out or has a throttle above it.
            wait: Whether to wait, without a limit, for jobs that are under way; see `when_idle`.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            hooks: What the caller wants to be told.

        Returns:
            `bytes` are those of the VM state, as read back.

        Raises:
            BadName: When the name is outside the grammar.
            TargetExists: When a moment of the machine has the name: QEMU would replace it.
            NotFound, AmbiguousName: When a disk to leave is not there, or its name fits two.
            Unsupported: When a disk that takes part (UEFI variables, too) is no qcow2 image, the machine's
                state was saved and it did not run since, or the human monitor is to leave a disk out.
            Busy: When a job runs, or a writable node without a use is in the way.
            CommandFailed, JobFailed: When QEMU could not take it.
            LinkLost: When the link goes; `changed` says what is known.

        HMP: savevm. QAPI: snapshot-save (migration.json).
        """
        return await self._do(CheckpointInternal(name, texts("leave", leave), via, plain), hooks, wait=wait)
