"""The part of a VM that speaks of VM state in files: checkpoints, ways back to them, save and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.model.arguments import check, refuse, texts
from qmpsnap.plan.intent import (
    Checkpoint,
    CheckpointInternal,
    Mode,
    PrepareRevert,
    Restore,
    Revert,
    RevertIncoming,
    Save,
)
from qmpsnap.run.paths import absolute

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from qmpsnap.plan.intent import Intent, Via
    from qmpsnap.run.outcome import Done, Hooks

__all__ = ["StateVerbs"]


class StateVerbs:
    """VM state of one machine; a part of VM."""

    if TYPE_CHECKING:

        async def _do(self, intent: Intent, hooks: Hooks | None, *, wait: bool = False) -> Done: ...

    async def checkpoint(
        self,
        name: str,
        *,
        mode: Mode = "stop",
        memory: str | os.PathLike[str] | None = None,
        leave: Sequence[str] = (),
        via: Via | None = None,
        wait: bool = False,
        plain: bool = False,
        hooks: Hooks | None = None,
    ) -> Done:
        """Keep VM state in a file, and put overlays on every writable disk, all of one instant.

        With the mode "internal" it is `checkpoint_internal`, and no overlay is made.

        After success the layers beneath hold the disks, the file the memory, and both are listed as one
        moment. A guest that ran runs on; one that was paused stays so. After a failure no moment is listed
        and no file of ours is left, but overlays that were put on before it ("background" writes its memory
        after them) stay, for the guest writes to them: `.left` names each, with the commit that folds it.
        Cancelled, it is taken back in the same way; "in-place" is finished once the memory is being written.

        Args:
            name: The checkpoint's name.
            mode: "stop": the guest stands still while its memory is written; a new QEMU goes back to it.
                "background": it runs on meanwhile; a new QEMU goes back. "in-place": it stands still; any
                QEMU goes back, this one, too. "internal": all goes into the disks' own images.
            memory: Where the VM state goes, not with "internal"; None: beside the first disk's active layer.
            leave: With "internal" alone: writable disks that take no part, in any spelling.
            via: With "internal" alone: "hmp" or "jobs", as of `checkpoint_internal`.
            wait: Whether to wait, without a limit, for jobs that are under way; see `when_idle`.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            hooks: What the caller wants to be told.

        Returns:
            The chains, the standstill by QEMU's own clock, and the bytes of VM state.

        Raises:
            BadName: When the name is outside the grammar.
            TargetExists: When a moment has the name, or a file that is to be made is there.
            InvalidTarget: When a file cannot be made, or there may be no room for the memory.
            Busy: When a job or a migration is running.
            Unsupported: When a disk, the machine's run state or this QEMU does not allow it.
            MigrationFailed: When QEMU cannot write the memory; `.error` is its text.
            JobFailed: When it cannot write it into the store.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: migrate (migration.json), snapshot-save, transaction, blockdev-snapshot-sync.
        """
        check("mode", mode, Mode)
        left = texts("leave", leave)
        if mode == "internal":
            if memory is not None:
                refuse("memory", memory, "the mode 'internal' saves the memory in an image")
            return await self._do(CheckpointInternal(name, left, via, plain), hooks, wait=wait)
        for parameter, value in (("leave", left), ("via", via)):
            if value:
                refuse(parameter, value, f"it is for the mode 'internal', and this is {mode!r}")
        file = "" if memory is None else absolute("memory", memory)
        return await self._do(Checkpoint(name, mode, file, plain), hooks, wait=wait)

    async def revert(
        self,
        name: str,
        *,
        leave: Sequence[str] = (),
        discard: bool = False,
        via: Via | None = None,
        hooks: Hooks | None = None,
    ) -> Done:
        """Go back to a moment in the same QEMU, of whichever kind it is.

        After a checkpoint, in place or inside the images, memory and disks are as they were; after a moment
        of external disks alone the guest is reset (a QEMU that was started with -no-reboot ends by that). A
        guest that ran runs on, one that was paused stays so, after a reset in the state prelaunch.
        An external moment's disks write to new overlays on the layers that hold it, and what has been written
        to since is kept in the layers that are left aside; inside the images it is lost.
        After a failure before the memory was touched all is as it was. After any other the guest stands
        still, its disks are at the moment and its memory is not to be trusted: `changed` is YES. Cancelled
        once a disk was moved, or the load was sent, it is finished; before, nothing is changed.

        Args:
            name: The moment's name.
            leave: Writable disks, in any spelling, that stay as they are, beside a memory of another time.
            discard: Whether the layers that the guest wrote to until now are removed.
            via: How a checkpoint inside the images is loaded, see `checkpoint_internal`.
            hooks: What the caller wants to be told; `on_pivot` hears where each disk writes to.

        Raises:
            NotFound, AmbiguousName: When no moment has the name, or two have it.
            Unsupported: When its memory needs a new QEMU, or a disk's device or filter was not tried.
            NotInChain: When a writable disk is not in the moment, or a layer does not hold it any more.
            MachineDiffers: When the machine is not the one that it was; `.differences` names how.
            Busy: When a job or a migration is running.
            WouldLose: When a layer that is to be discarded holds internal snapshots.
            TargetExists, InvalidTarget: When an overlay or the VM state is not as it has to be.
            JobFailed, CommandFailed: When QEMU cannot load the memory; `changed` tells the two kinds of
                failure apart.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: blockdev-add, qom-set, blockdev-reopen, snapshot-load, system_reset. HMP: loadvm.
        """
        return await self._do(Revert(name, texts("leave", leave), discard, via), hooks)

    async def revert_prepare(self, name: str) -> Done:
        """Make the overlays from which a new QEMU goes back to a moment; this one goes on.

        Returns:
            `.prepared`: the overlay of each disk; `.memory`: the file that is to be loaded, or "".

        Raises:
            NotFound, AmbiguousName: When no moment has the name, or two have it.
            NotInChain: When a layer does not hold it any more.
            TargetExists, InvalidTarget: When an overlay cannot be made, or the memory file is not whole,
                or another one.
        """
        return await self._do(PrepareRevert(name), None)

    async def revert_incoming(self, name: str, *, hooks: Hooks | None = None) -> Done:
        """Load a checkpoint's memory into this QEMU, started `-S -incoming defer` on prepared overlays.

        After success the guest is as it was, and runs if it ran then. After a failure of the load QEMU has
        ended, and the overlays are as they were made.

        Raises:
            NotFound, AmbiguousName: When no moment of these disks has the name, or two have it.
            Unsupported: When the machine does not wait for VM state, or the moment has none for it.
            NotInChain: When a disk does not stand on the checkpoint's layer.
            MachineDiffers: When the machine is another, or an overlay has data already.
            InvalidTarget: When the memory file is missing, cut, or another one.
            LinkLost: When QEMU ends, as it does when it cannot load the memory.

        QAPI: migrate-incoming (migration.json).
        """
        return await self._do(RevertIncoming(name), hooks)

    async def save(
        self, file: str | os.PathLike[str], *, plain: bool = False, hooks: Hooks | None = None
    ) -> Done:
        """Write VM state to a file; the guest stands still from then on, so that its disks fit it.

        After a failure, and cancelled while the memory is written, a guest that ran runs on and no file of
        ours is left. Cancelled once it is written, all is done: the file is there, and the guest stands.

        Args:
            file: Where it goes.
            plain: Whether what is encrypted may lie in the clear afterwards; else that is refused.
            hooks: What the caller wants to be told.

        Raises:
            TargetExists: When the file is there already.
            InvalidTarget: When it cannot be made there, or there may be no room.
            Busy: When a job or a migration is running.
            Unsupported: When the machine's state or the monitor does not allow it, or a layer is no file.
            MigrationFailed: When QEMU cannot write it; `.error` is its text.
            LinkLost: When the link goes; `changed` says what is known.

        QAPI: migrate (migration.json).
        """
        return await self._do(Save(absolute("file", file), plain), hooks)

    async def restore(self, file: str | os.PathLike[str], *, hooks: Hooks | None = None) -> Done:
        """Read the VM state of `save` into this QEMU, started `-S -incoming defer` on the same layers.

        After success the guest is as it was, and runs if it ran then. After a failure of the load QEMU has
        ended, and the layers are as they were.

        Args:
            file: The file.
            hooks: What the caller wants to be told.

        Raises:
            Unsupported: When the machine does not wait for VM state.
            InvalidTarget: When the file is missing, cut, or none of ours.
            MachineDiffers: When the machine is another, or a layer has changed since; `.differences`.
            LinkLost: When QEMU ends, as it does when it cannot load the state.

        QAPI: migrate-incoming (migration.json).
        """
        return await self._do(Restore(absolute("file", file)), hooks)
