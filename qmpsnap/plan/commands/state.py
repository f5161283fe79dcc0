"""The guest, and checkpoints inside images: run state, human monitor, and jobs on VM state.

QAPI: misc.json, machine.json, migration.json. HMP: savevm, loadvm, delvm; the human monitor answers nothing
when it succeeds, and text when it fails. The jobs always start; their result only query-jobs tells, once they
have concluded. Such a job never dismisses itself, and holds QEMU's main loop while it works.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.step import Inside, Step
from qmpsnap.plan.commands.jobs import job_dismiss

Nodes = tuple[tuple[str, str], ...]
"""Of each disk its name and the node-name of its active layer; ("", node) for a store."""


def cont() -> Step:
    """Resume the guest; does nothing, and sends no event, when it is running. QAPI: cont."""
    return Step(on="qmp", command="cont")


def stop(*, ran: bool = True) -> Step:
    """Pause the guest, and resume it on rollback if it `ran`. QAPI: stop.

    It is sent to a paused guest as well: somebody may have resumed it a moment ago.
    """
    return Step(on="qmp", command="stop", undo=(cont(),) if ran else (), pauses=True)


def stop_for_load(name: str) -> Step:
    """Pause a running guest as QEMU does for a load: by a load that finds nothing. HMP: loadvm.

    QEMU forgets what it has translated of an emulated guest's code only when a load pauses the running guest
    (`tcg_vm_change_state`, at RUN_STATE_RESTORE_VM). After `stop` it runs stale code: seen on 11.1, a guest
    that was rebooted since panics or hangs. The step is done when QEMU says that it failed and the run state
    is `restore-vm`; `cont` takes it back.

    Args:
        name: A name that no snapshot has; outside our grammar of names.
    """
    return replace(_monitor("loadvm", name, kind="stop-for-load"), undo=(cont(),), pauses=True)


def system_reset() -> Step:
    """Reset the guest: its memory belongs to other disks. QAPI: system_reset."""
    return Step(on="qmp", command="system_reset", loads=True)


def savevm(name: str, disks: tuple[str, ...]) -> Step:
    """Pause the guest, save VM state and disks inside the images, and resume it. HMP: savevm.

    An equal name would be replaced without notice, on every disk; `disks` are all that QEMU takes.
    """
    step = _monitor("savevm", name)
    return replace(step, effect=Inside(disks, name), final=True, writes=True, pauses=True)


def loadvm(name: str, *, running: bool = False) -> Step:
    """Load a checkpoint; a guest that was running is resumed, a paused one stays paused. HMP: loadvm.

    With `running`, the guest is resumed also when the load failed before anything changed: QEMU paused it.
    """
    return replace(
        _monitor("loadvm", name),
        on_failure=(cont(),) if running else (),
        final=True,
        writes=True,
        pauses=True,
        loads=True,
        unseen=True,
    )


def delvm(name: str, disks: tuple[str, ...]) -> Step:
    """Delete a checkpoint from every disk that has it. HMP: delvm, which ignores a missing one."""
    step = _monitor("delvm", name)
    return replace(step, effect=Inside(disks, name, gone=True), final=True, writes=True)


def _monitor(word: str, name: str, *, kind: str = "") -> Step:
    return Step(
        on="qmp",
        command="human-monitor-command",
        kind=kind or word,
        arguments=Frozen({"command-line": f"{word} {quoted(name)}"}),
        detail=Frozen(name=name),
    )


def snapshot_save(job: str, name: str, nodes: Nodes) -> Step:
    """Save VM state in the first node, and a snapshot in each. QAPI: snapshot-save.

    An equal name is an error, unlike with savevm.
    """
    arguments = {"job-id": job, "tag": name, "vmstate": nodes[0][1], "devices": _devices(nodes)}
    return _state_job("snapshot-save", arguments, nodes, gone=False, pauses=True)


def snapshot_load(job: str, name: str, nodes: Nodes, vmstate: str, *, running: bool = False) -> Step:
    """Load VM state from one node, and the snapshot in each. QAPI: snapshot-load.

    A load that fails leaves a running guest paused, whether before anything changed or half-way.

    Args:
        job: The job's id.
        name: The snapshot's name; QEMU calls it a tag.
        nodes: The nodes.
        vmstate: node-name of the node that has the VM state.
        running: Whether the guest is resumed when nothing has changed: it was running, and QEMU paused it.
    """
    arguments = {"job-id": job, "tag": name, "vmstate": vmstate, "devices": _devices(nodes)}
    return Step(
        on="qmp",
        command="snapshot-load",
        arguments=Frozen(arguments),
        detail=Frozen(disks=_disks(nodes)),
        undo=_concluded(job, running=running),
        final=True,
        writes=True,
        pauses=True,
        loads=True,
        unseen=True,
        restores=True,
    )


def snapshot_delete(job: str, name: str, nodes: Nodes) -> Step:
    """Delete the snapshot from each node; a missing one is ignored. QAPI: snapshot-delete."""
    arguments = {"job-id": job, "tag": name, "devices": _devices(nodes)}
    return _state_job("snapshot-delete", arguments, nodes, gone=True)


def _state_job(
    command: str, arguments: Mapping[str, object], nodes: Nodes, *, gone: bool, pauses: bool = False
) -> Step:
    disks = _disks(nodes)
    return Step(
        on="qmp",
        command=command,
        arguments=Frozen(arguments),
        detail=Frozen(disks=disks),
        undo=_concluded(str(arguments["job-id"])),
        effect=Inside(disks, str(arguments["tag"]), gone=gone) if disks else None,
        final=True,
        writes=bool(disks),
        pauses=pauses,
    )


def adopt(
    command: str, job: str, *, name: str = "", disks: tuple[str, ...] = (), running: bool = False
) -> Step:
    """Take over a job on VM state that an earlier client started; nothing is sent.

    Args:
        command: What started it; QEMU calls the job's type the same.
        job: The job's id.
        name: The snapshot's name, where that was recorded.
        disks: The disks that take part, likewise.
        running: As in `snapshot_load`.
    """
    loads = command == "snapshot-load"
    return Step(
        on="wait",
        command=command,
        arguments=Frozen({"job-id": job, "tag": name}),
        detail=Frozen(disks=disks),
        undo=_concluded(job, running=running),
        final=True,
        writes=loads or bool(disks),
        pauses=True,
        loads=loads,
        unseen=loads,
        restores=loads,
    )


def _concluded(job: str, *, running: bool = False) -> tuple[Step, ...]:
    """The rollback of a job that cannot be cancelled: it has concluded, and is dismissed."""
    return (*((cont(),) if running else ()), job_dismiss(job))


def _disks(nodes: Nodes) -> tuple[str, ...]:
    return tuple(disk for disk, _ in nodes if disk)


def _devices(nodes: Nodes) -> list[str]:
    return [node for _, node in nodes]


def quoted(text: str) -> str:
    r"""Spell a word for the human monitor, which knows the escapes \", \\, \n and \r inside quotes."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'
