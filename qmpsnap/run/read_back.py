"""After an operation: checks that names and headers of the files lead where the graph says.

QEMU writes names into headers unchecked, and keeps using files that have lost their name. Its graph would be
right all the same, but the machine could not be started again.
"""

from __future__ import annotations

import shlex

from qmpsnap.errors import Changed, Incomplete
from qmpsnap.model.files import Ask, Files
from qmpsnap.model.graph import Graph
from qmpsnap.model.hints import command, qmp
from qmpsnap.plan.plan import Plan
from qmpsnap.run.target import Target


async def look_back(target: Target, plan: Plan, graph: Graph) -> Files:
    """Look at each file whose header the plan changes, and at each copy that it makes; QEMU is not queried.

    Args:
        target: The machine.
        plan: The plan, whose steps that write these files have been done.
        graph: The graph as of now, read or predicted.
    """
    headers = _headers(plan, graph)
    backing = (below for below in headers.values() if below)
    names = (*plan.copies_made, *headers, *backing)
    return await target.look(Ask(files=names), graph) if names else Files()


def check_files(plan: Plan, graph: Graph, files: Files) -> None:
    """Check what `look_back` found against the graph as it was read.

    Nothing is checked where QEMU's files are not visible from here. After an operation that an earlier run
    completed, files that have changed since are not checked either.

    Raises:
        Incomplete: When a file does not exist, or its header and the graph disagree.
    """
    if not files.shared:
        return
    made, headers = plan.copies_made, _headers(plan, graph)
    lost = [_lost(file, files) for file in (*made, *headers)]
    astray = {file: _astray(file, below, files) for file, below in headers.items()}
    problems = list(dict.fromkeys(problem for problem in (*lost, *astray.values()) if problem))
    if not problems:
        return
    hints = [_correction(file, headers[file], graph) for file, problem in astray.items() if problem]
    if any(lost):
        hints.append("put the file that QEMU has open back under its name")
    if plan.operation_id:
        hints.append(f"then finish it: {command('job', 'wait', plan.operation_id)}")
    raise Incomplete(
        f"{plan.op} is done, but its files cannot start a machine: {'; '.join(problems)}",
        done=[step.command for step in plan.steps],
        remaining=problems,
        hint=", ".join(hints),
        changed=Changed.YES,
    )


def _headers(plan: Plan, graph: Graph) -> dict[str, str]:
    """Each file whose header the plan changes, with the file that backs it in the graph, or ""."""
    backed = {
        pair for files in graph.chains().values() for pair in zip(files, (*files[1:], ""), strict=False)
    }
    return {file: below for file, below in plan.headers.items() if (file, below) in backed}


def _correction(file: str, below: str, graph: Graph) -> str:
    """The command line that corrects the header of a layer.

    QEMU's change-backing-file records the layer's own format as that of its backing file (blockdev.c,
    qmp_change_backing_file), so it corrects only a layer that is backed by one of the same format.
    """
    for disk in graph.disks.values():
        for layer, backing in zip(disk.layers, (*disk.layers[1:], None), strict=True):
            if layer.file == file and backing is not None and backing.format == layer.format:
                arguments = {"device": disk.root, "image_node_name": layer.node, "backing_file": below}
                return f"while this QEMU runs: {qmp('change-backing-file', **arguments)}"
    formats = {layer.file: layer.format for disk in graph.disks.values() for layer in disk.layers}
    named = ("-F", formats[below]) if below in formats else ()
    return f"once this QEMU has ended: {shlex.join(('qemu-img', 'rebase', '-u', *named, '-b', below, file))}"


def _lost(file: str, files: Files) -> str:
    """Why the name does not lead to the file that the operation created or left, or ""."""
    fact, opened = files.files[file], files.open.get(file)
    if fact.kind in {"missing", "symlink"}:
        return f"there is no {file}"
    if opened is not None and opened.state in {"moved", "unlinked"}:
        return f"{file} is not the file that QEMU has open"
    return ""


def _astray(file: str, below: str, files: Files) -> str:
    """What is wrong with the backing file that a header names, or "".

    Args:
        file: The image.
        below: The layer that backs it; "" if none, or none that is a local file.
        files: What was found.
    """
    fact = files.files[file]
    if fact.kind != "regular" or fact.problem or (fact.header is None and not below):
        return ""  # a device's header we do not read
    recorded = fact.header.backing if fact.header is not None else None
    if below and fact.backing != files.real(below):
        return f"the header of {file} names the backing file {recorded!r}, not {below}"
    if not below and fact.backing is not None:
        return f"the header of {file} still names the backing file {recorded!r}"
    return ""
