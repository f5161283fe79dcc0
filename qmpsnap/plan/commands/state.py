"""The guest, and checkpoints inside images: run state, human monitor, and jobs on VM state.

QAPI: misc.json, machine.json, migration.json. HMP: savevm, loadvm, delvm; the human monitor answers nothing
when it succeeds, and text when it fails. The jobs always start; what became of them only query-jobs tells,
once they have concluded. Such a job never dismisses itself, and holds QEMU's main loop while it works.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.plan.commands.jobs import job_dismiss
from qmpsnap.plan.step import Inside, Step

Nodes = tuple[tuple[str, str], ...]
"""Of each disk its name and the node-name of its active layer; ("", node) for a store."""


def cont() -> Step:
    """Let the guest run on; does nothing, and is no event, when it runs already. QAPI: cont."""
    return Step(on="qmp", command="cont")


def stop(*, ran: bool = True) -> Step:
    """Pause a guest that runs; does nothing when it is paused. QAPI: stop.

    It is sent to a paused guest as well: somebody may have let it run a moment ago.

    Args:
        ran: Whether the guest ran when the plan was made, and is to run on if this is taken back.
    """
    return Step(on="qmp", command="stop", undo=(cont(),) if ran else (), pauses=True)


def stop_for_load(name: str) -> Step:
    """Pause a guest that runs as QEMU does it for a load: by one that finds nothing. HMP: loadvm.

    For CPUs that QEMU emulates: what it has translated of the guest's code it forgets only when a load stops
    a guest that runs (`tcg_vm_change_state`, at RUN_STATE_RESTORE_VM). After `stop` it runs stale code: seen
    on 11.1, a guest that was rebooted since panics or hangs. Done when QEMU says that it failed and the run
    state is `restore-vm`; `cont` takes it back.

    Args:
        name: A name that no snapshot has; outside our grammar of names.
    """
    return replace(_monitor("loadvm", name, kind="stop-for-load"), undo=(cont(),), pauses=True)


def system_reset() -> Step:
    """Press the guest's reset button: its memory belongs to other disks. QAPI: system_reset."""
    return Step(on="qmp", command="system_reset", loads=True)


def savevm(name: str, disks: tuple[str, ...]) -> Step:
    """Pause the guest, keep VM state and disks inside the images, and let it go on. HMP: savevm.

    An equal name would be replaced without a word, on every disk.

    Args:
        name: What the checkpoint is called.
        disks: The disks that QEMU takes: every writable one.
    """
    step = _monitor("savevm", name)
    return replace(step, effect=Inside(disks, name), final=True, writes=True, pauses=True)


def loadvm(name: str, *, running: bool = False) -> Step:
    """Go back to a checkpoint; a guest that ran runs on, one that was paused stays so. HMP: loadvm.

    Args:
        name: The checkpoint's name.
        running: Whether the guest is let run on when nothing has moved: it ran, and QEMU paused it.
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
    """Delete a checkpoint from every disk that has it. HMP: delvm, which is silent about a missing one.

    Args:
        name: The checkpoint's name.
        disks: The disks that have it.
    """
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
    """Keep VM state in the first node, and a snapshot in each. QAPI: snapshot-save.

    An equal name is an error, other than with savevm.
    """
    arguments = {"job-id": job, "tag": name, "vmstate": nodes[0][1], "devices": _devices(nodes)}
    return _state_job("snapshot-save", arguments, nodes, gone=False, pauses=True)


def snapshot_load(job: str, name: str, nodes: Nodes, vmstate: str, *, running: bool = False) -> Step:
    """Go back to VM state in one node, and to the snapshot in each. QAPI: snapshot-load.

    A load that fails leaves a guest that ran paused, be it before anything moved or half-way.

    Args:
        job: The job's id.
        name: The snapshot's name; QEMU calls it a tag.
        nodes: The nodes.
        vmstate: node-name of the node that keeps the VM state.
        running: Whether the guest is let run on when nothing has moved: it ran, and QEMU paused it.
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
    """Delete the snapshot from each node; silent about a missing one. QAPI: snapshot-delete."""
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
        name: The snapshot's name, where that was written down.
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
    """What takes a job back that cannot be cancelled: it has concluded, and is dismissed."""
    return (*((cont(),) if running else ()), job_dismiss(job))


def _disks(nodes: Nodes) -> tuple[str, ...]:
    return tuple(disk for disk, _ in nodes if disk)


def _devices(nodes: Nodes) -> list[str]:
    return [node for _, node in nodes]


def quoted(text: str) -> str:
    r"""Spell a word for the human monitor, which knows the escapes \", \\, \n and \r inside quotes."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + "".join(escapes.get(letter, letter) for letter in text) + '"'
