"""Troubles of a chain: it would be another one, or none, at the next start; or it is too long."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator
from itertools import zip_longest

from qmpsnap.errors import FileMoved
from qmpsnap.model.files import Files
from qmpsnap.model.graph import FILTER_DRIVERS, LONG_CHAIN, Disk, Layer
from qmpsnap.model.hints import qmp_words
from qmpsnap.model.names import digest, stem
from qmpsnap.plan.checks.opened import moved_layers, temporary
from qmpsnap.plan.diagnosis.facts import Case, Facts
from qmpsnap.plan.diagnosis.images import rebased

_AGAIN = "it copies nothing: it writes the name and the format into the header"


def layer_moved(facts: Facts) -> Iterator[Case]:
    """A layer whose name leads to another file, or nowhere, while QEMU has the file open."""
    for disk in facts.graph.disks.values():
        for error in moved_layers(disk, facts.graph, facts.files):
            open_file = facts.files.open[error.file]
            if open_file.state == "moved" and error.path and not open_file.replaced:
                yield Case(error.file, error.message, ("mv", "-T", error.path, error.file))
            else:
                yield Case(error.file, error.message, *_copied(disk, error))


def _copied(disk: Disk, error: FileMoved) -> tuple[tuple[str, ...], str]:
    """The command that copies a disk away from its files, and what to know about it."""
    layer = disk.active
    ending = "qcow2" if layer.format == "qcow2" else "raw"
    name = posixpath.join(posixpath.dirname(layer.file), f"{stem(layer.file)}.copy.{ending}")
    back = f"or {error.hint.partition(', or ')[0]}; " if error.path else ""
    if not name.startswith("/"):
        return (), error.hint
    remedy = ("qmpsnap", "mirror", disk.name, name, "--pivot")
    return remedy, f"{back}from then on the machine is started from the copy"


def backing_wrong(facts: Facts) -> Iterator[Case]:
    """A layer whose header names another backing file than the one that QEMU has open."""
    for disk, layer, below, recorded in _links(facts):
        fact = facts.files.files[layer.file]
        if below is None:
            if recorded is not None:
                yield Case(
                    layer.file,
                    f"its header names the backing file {recorded!r}, and {disk.name} reads it without "
                    "one: the next start would read other data",
                    advice="QEMU cannot remove the name while it has the image open. With the machine off: "
                    f"{shlex.join(('qemu-img', 'rebase', '-u', '-f', 'qcow2', '-b', '', layer.file))}",
                )
        elif recorded is None:
            yield Case(
                layer.file,
                f"its header names no backing file, and {disk.name} reads it on {below.file}: the next start "
                "would lose what the layers beneath hold",
                _rewritten(layer, below),
                _AGAIN,
            )
        elif fact.backing is None or facts.files.real(below.file) != fact.backing:
            there = fact.backing is not None and _exists(facts.files, fact.backing)
            what = "which is another file" if there else "which leads to no file"
            yield Case(
                layer.file,
                f"its header names the backing file {recorded!r}, {what}; {disk.name} reads {below.file}: "
                "the next start would fail, or read other data",
                _rewritten(layer, below),
                _AGAIN,
            )


def format_wrong(facts: Facts) -> Iterator[Case]:
    """A layer whose header records another format of its backing file than QEMU has it open with."""
    for _, layer, below, recorded in _links(facts):
        header = facts.files.files[layer.file].header
        if below is None or recorded is None or header is None or header.backing_format == below.format:
            continue
        if header.backing_format is not None:
            filtered = header.backing_format in FILTER_DRIVERS
            what = "nothing at all" if filtered else "other data"
            cause = (
                f"its header calls the backing file {header.backing_format}, and it is {below.format}: "
                f"the next start would fail, or read {what}"
            )
            yield Case(layer.file, cause, _rewritten(layer, below), _AGAIN)


def format_missing(facts: Facts) -> Iterator[Case]:
    """A layer whose header does not record the format of its backing file."""
    for _, layer, below, recorded in _links(facts):
        header = facts.files.files[layer.file].header
        if below is not None and recorded is not None and header is not None and not header.backing_format:
            yield Case(
                layer.file,
                f"its header does not record the format of {below.file}: the next start guesses it from what "
                "the guest has written there",
                _rewritten(layer, below),
                _AGAIN,
            )


def read_as_raw(facts: Facts) -> Iterator[Case]:
    """A qcow2 image that is read as raw; its name counts, too: a guest may write such a header."""
    for disk in facts.graph.disks.values():
        for above, layer in zip((None, *disk.layers), disk.layers, strict=False):
            fact = facts.files.files.get(layer.file)
            if layer.format != "raw" or not layer.file.endswith(".qcow2") or _odd(layer, facts.files):
                continue
            if fact is None or fact.header is None:
                continue
            if above is not None:
                cause = f"{disk.name} reads its backing file {layer.file} as raw, and that has a qcow2 header"
                over = facts.files.files.get(above.file)
                header = over.header if over is not None else None
                command = rebased(above.file, (header and header.backing) or layer.file, "qcow2")
                advice = (
                    "if that was made as qcow2; keep a copy first, for a guest may have written on top of it"
                )
                if facts.off:
                    yield Case(above.file, cause, command, advice)
                else:
                    yield Case(
                        above.file, cause, advice=f"with the machine off: {shlex.join(command)} - {advice}"
                    )
            elif not facts.off:  # whoever names the format of an image that is off has decided
                yield Case(
                    layer.file,
                    f"{disk.name} reads it as raw, and it has a qcow2 header",
                    advice="if it was made as qcow2, start the machine with that format; what the guest has "
                    "written meanwhile may have damaged it",
                )


def chain_long(facts: Facts) -> Iterator[Case]:
    """A chain with so many layers that QEMU's main loop stands still for each look at it."""
    for disk in facts.graph.disks.values():
        if len(disk.layers) <= LONG_CHAIN:
            continue
        named = any(
            disk.name in moment.disks for moment in facts.moments.moments if moment.kind == "external"
        )
        yield Case(
            disk.name,
            f"its chain has {len(disk.layers)} layers, more than {LONG_CHAIN}: each look at the graph holds "
            "QEMU for tenths of a second, and each start takes longer",
            ("qmpsnap", "prune", "--disk", disk.name, "--max-depth", str(LONG_CHAIN // 2))
            if named
            else ("qmpsnap", "commit", disk.name, "--top", disk.files[1], "--base", disk.base.file),
            "the cheapest snapshots go; look at the plan first: add -n"
            if named
            else "all layers but the active one go into the base",
        )


def started_below(facts: Facts) -> Iterator[Case]:
    """A machine that was started from an old file, and writes into what other images are based on."""
    for one in facts.below:
        newest = " or ".join(map(shlex.quote, one.newest))
        advice = (
            f"if the machine has a newer layer, name that: {newest}"
            if facts.off
            else f"if this machine should run from a newer layer, quit it, and start it from {newest}: no "
            "command can decide that, since what was written meanwhile is in the old file alone"
        )
        verb = "is named as the active layer" if facts.off else "is written to"
        cause = f"{one.active} {verb}, and {', '.join(one.newest)} {_is(one.newest)} based on it"
        yield Case(one.disk, cause, advice=advice)


def _is(names: tuple[str, ...]) -> str:
    return "is" if len(names) == 1 else "are"


def _links(facts: Facts) -> Iterator[tuple[Disk, Layer, Layer | None, str | None]]:
    """Each layer whose header was read, with its disk, the layer beneath, and the name in the header."""
    if facts.off or not facts.files.shared:
        return
    for disk in facts.graph.disks.values():
        for layer, below in zip_longest(disk.layers, disk.layers[1:]):
            fact = facts.files.files.get(layer.file)
            if fact is None or fact.header is None or layer.format != "qcow2" or _odd(layer, facts.files):
                continue
            if below is None or (not _odd(below, facts.files) and below.local):
                yield disk, layer, below, fact.header.backing


def _odd(layer: Layer, files: Files) -> bool:
    """Whether the header cannot be compared: another file has the name, or no single file holds the layer."""
    known = files.open.get(layer.file)
    lost = known is not None and known.state not in {"same", "unknown"}
    return lost or bool(layer.inner) or layer.window or temporary(layer, files)


def _exists(files: Files, path: str) -> bool:
    fact = files.images.get(path) or files.files.get(path)
    return fact is not None and fact.taken


def _rewritten(layer: Layer, below: Layer) -> tuple[str, ...]:
    """The command that writes name and format of the layer beneath into a header, and copies nothing.

    A stream down to the layer's own backing file. QEMU's change-backing-file would record the layer's own
    format as that of the backing file (docs/explanation/qemu.md).
    """
    return qmp_words(
        "block-stream",
        job_id=f"header-{digest(layer.file, below.file)}",
        device=layer.node,
        base_node=below.node,
        backing_file=below.file,
    )
