"""Troubles of what is kept: bitmaps, snapshots, their VM state, and records."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from qmpsnap.model.hints import qmp_words
from qmpsnap.model.interrupted import is_of_fork, left_behind
from qmpsnap.model.keeper import Keeper, KeptFor, ending
from qmpsnap.model.layer_stamps import WrittenLayer
from qmpsnap.plan.diagnosis.facts import Case, Facts
from qmpsnap.plan.written import accepted, in_utc


def bitmap_inconsistent(facts: Facts) -> Iterator[Case]:
    """A dirty bitmap that was in use when QEMU was killed: no backup can use it any more."""
    for disk in facts.graph.disks.values():
        if facts.graph.first_of(disk) is not disk:
            continue
        for layer in disk.layers:
            for bitmap in layer.bitmaps:
                if not bitmap.inconsistent:
                    continue
                subject = f"{disk.name}: {bitmap.name}"
                cause = (
                    f"this bitmap in {layer.file} was in use when QEMU was killed: it misses writes, and no "
                    "backup can use it"
                )
                words: tuple[str, ...]
                if facts.off:
                    words = ("qemu-img", "bitmap", "--remove", "-f", "qcow2", layer.file, bitmap.name)
                    yield Case(subject, cause, words, "the next backup has to be a full one")
                elif layer.read_only:
                    yield Case(
                        subject,
                        cause,
                        advice="QEMU has the layer open read-only and cannot remove it now: run the "
                        "doctor on the images (-i) when the machine is off",
                    )
                else:
                    words = qmp_words("block-dirty-bitmap-remove", node=layer.node, name=bitmap.name)
                    yield Case(subject, cause, words, "the next backup has to be a full one")


def bitmap_busy(facts: Facts) -> Iterator[Case]:
    """A dirty bitmap that a job or an export uses, so that no other backup can."""
    for disk in facts.graph.disks.values():
        for layer in disk.layers:
            for bitmap in layer.bitmaps:
                if bitmap.busy and bitmap.name and facts.graph.first_of(disk) is disk:
                    jobs = [job.id for job in facts.jobs if job.type == "backup"]
                    user = f"a job ({', '.join(jobs)})" if jobs else "an export or a job of another client"
                    shown = "qmpsnap jobs" if jobs else "qmpsnap qmp query-block-exports"
                    yield Case(
                        f"{disk.name}: {bitmap.name}",
                        f"{user} uses this bitmap, and every other backup by it is refused until that ends",
                        advice=f"{shown} shows it; it ends by itself, unless its client is gone",
                    )


def layer_invalid(facts: Facts) -> Iterator[Case]:
    """A layer into which a commit has written, and that stays in a chain."""
    at_work = {record.id for record in facts.at_work}
    for record in facts.operations:
        if not record.permanent or record.id in at_work:
            continue
        for disk in facts.graph.disks.values():
            inside = [file for file in record.invalid if file in disk.files[1:]]
            if inside and record.top in disk.files:
                top = () if disk.files[0] == record.top else ("--top", record.top)
                yield Case(
                    disk.name,
                    f"a commit that kept its overlay has written into {', '.join(inside)}, which holds no "
                    "snapshot any more",
                    ("qmpsnap", "commit", disk.name, *top, "--base", inside[-1]),
                    "this folds those layers; until then nothing may be reverted to, or based on, the layer",
                )


def moment_lost(facts: Facts) -> Iterator[Case]:
    """A snapshot that no file holds any more."""
    for moment in facts.moments.moments:
        lost = [part.file for part in moment.held if part.invalid]
        if lost and len(lost) == len(moment.held) and not any(one.invalid for one in facts.operations):
            yield Case(
                moment.name,
                f"a commit has written into the layer that held it ({', '.join(lost)}): it can neither be "
                "read nor reverted to",
                ("qmpsnap", "delete", moment.name),
            )


def layer_written(facts: Facts) -> Iterator[Case]:
    """A layer to which somebody else has written after a snapshot that is read from it."""
    written: dict[str, dict[str, WrittenLayer]] = {}
    for moment in facts.moments.moments:
        for part in moment.held:
            for layer in part.written if not part.invalid else ():
                name = f"{moment.name!r} ({in_utc(moment.created)})"
                written.setdefault(layer.file, {})[name] = layer
    for file, held in written.items():
        first = min(held.values(), key=lambda layer: layer.was)
        yield Case(
            file,
            f"it was written to at {in_utc(first.at)}, and not by qmpsnap, after these snapshots that are "
            f"read from it: {', '.join(held)}; they may hold other data by now",
            advice="if the guest reads what it read then (the file was only touched, or repaired), say so: "
            f"{shlex.join(accepted(first))}; else delete the snapshots",
        )


def state_missing(facts: Facts) -> Iterator[Case]:
    """A checkpoint whose file of VM state is missing."""
    for moment in facts.moments.moments:
        file = moment.vm_state_file
        # A fork's checkpoint is deleted before the rest.
        of_fork = moment.record is not None and is_of_fork(moment.record.id)
        if file in facts.missing and not of_fork:
            yield Case(
                moment.name,
                f"its VM state, {file}, is missing: the guest cannot be reverted to this checkpoint",
                ("qmpsnap", "delete", moment.name),
                "or move the file back, if you know where it is",
            )


def state_unused(facts: Facts) -> Iterator[Case]:
    """A file of VM state that no snapshot uses."""
    for file in facts.moments.unneeded:
        yield Case(
            file,
            "it holds a guest's memory, and no record names it: an operation died, or its record is gone",
            ("rm", "--", file),
            "unless its record is elsewhere (--state-dir)",
        )


def keeper_left(facts: Facts) -> Iterator[Case]:
    """An image of a template or a fork that was being made, or ran, when its process was killed."""
    for left in left_behind(facts.files.keepers, facts.operations):
        layers = ", ".join(left.layers) or "a layer"
        yield Case(
            left.files[0],
            f"it keeps {layers} for a {left.kind}, whose process was killed",
            left.remedy,  # it removes those that were created with it, too
        )


def keeper_gone(facts: Facts) -> Iterator[Case]:
    """An image that shows that a layer is needed by a template or a clone, which is not there any more."""
    together: dict[tuple[KeptFor, str], dict[str, Keeper]] = {}
    for file, keeper in facts.files.keepers.items():
        if keeper.state == "gone":
            together.setdefault((keeper.owner, ending(file)), {})[file] = keeper
    for (owner, _), keepers in together.items():
        file = next(iter(keepers))
        layers = ", ".join(keeper.layer or "its layer" for keeper in keepers.values())
        yield Case(
            file,
            f"a commit into {layers} would be refused for {owner}, which is not there",
            ("qmpsnap", "template", "--remove", file),  # it removes those that were created with it, too
            "only if it was removed for good, and is not merely on storage that is absent now",
        )


def record_unreadable(facts: Facts) -> Iterator[Case]:
    """A record that cannot be read."""
    for problem in facts.files.bad_records:
        path, _, reason = problem.partition(": ")
        yield Case(
            path,
            f"this record cannot be read ({reason}): some snapshot or operation is not known",
            advice="put back a copy, or move it away: then a name is lost, and no image is touched",
        )
