"""Troubles of the images of a machine that is off: chains that cannot be read, images that need a repair."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Iterator
from itertools import pairwise

from qmpsnap.model.files import FileFact
from qmpsnap.model.header import is_plain_name
from qmpsnap.model.hints import quoted
from qmpsnap.plan.diagnosis.facts import Case, Facts

_SUFFIX = ".qcow2"
_NO_COMMAND = "no command mends that: give another path, or use another copy of the image"


def backing_missing(facts: Facts) -> Iterator[Case]:
    """A backing file that is not where the header says."""
    for broken in facts.broken:
        for (above, over), (file, fact) in pairwise(broken.files):
            if fact.kind not in {"missing", "symlink"}:
                continue
            found = [path for path in broken.near if posixpath.basename(path) == posixpath.basename(file)]
            cause = f"its backing file {file} does not exist: {broken.disk} cannot be started"
            form = over.header.backing_format if over.header is not None else None
            if len(found) == 1 and form is not None:
                yield Case(
                    above,
                    cause,
                    rebased(above, found[0], form),
                    f"if {found[0]} is that file, which its name suggests and nothing proves",
                )
            else:
                yield Case(
                    above,
                    cause,
                    advice=broken.hint
                    or "move the file back, or give its new place: qemu-img rebase -u -f qcow2 "
                    f"-b NEW -F {form or 'FORMAT'} {quoted(above)}",
                )


def format_unknown(facts: Facts) -> Iterator[Case]:
    """A header that does not record the format of its backing file."""
    for broken in facts.broken:
        for (above, over), (file, fact) in pairwise(broken.files):
            if over.header is None or over.header.backing_format is not None or not fact.taken:
                continue
            cause = (
                f"it does not record the format of its backing file {file}: QEMU would guess it from what a "
                "guest has written there"
            )
            form = _format_of(file, fact)
            if form:
                yield Case(above, cause, rebased(above, over.header.backing or file, form))
            else:
                yield Case(
                    above,
                    cause,
                    advice=f"{file} has a qcow2 header, which a guest may have written. If it was made as "
                    f"qcow2: {shlex.join(rebased(above, file, 'qcow2'))}; else with -F raw",
                )


def format_differs(facts: Facts) -> Iterator[Case]:
    """A header that records another format than its backing file has."""
    for broken in facts.broken:
        for (above, over), (file, fact) in pairwise(broken.files):
            form = over.header.backing_format if over.header is not None else None
            if form == "qcow2" and fact.kind == "regular" and fact.header is None and not fact.problem:
                yield Case(
                    above,
                    f"it calls its backing file {file} qcow2, which has no qcow2 header",
                    rebased(above, (over.header and over.header.backing) or file, "raw"),
                    "if that is a raw image, and not a damaged one",
                )


def image_refused(facts: Facts) -> Iterator[Case]:
    """A chain that must not or cannot be opened, for a reason that no other rule names."""
    named = {file for rule in (backing_missing, format_unknown, format_differs) for file, *_ in rule(facts)}
    for broken in facts.broken:
        if not any(file in named for file, _ in broken.files):
            yield Case(broken.disk, broken.reason, advice=broken.hint or _NO_COMMAND)


def image_damaged(facts: Facts) -> Iterator[Case]:
    """An image that was not closed properly, is marked as corrupt, or is truncated."""
    for file, reason in facts.damaged.items():
        truncated = "truncated" in reason
        yield Case(
            file,
            reason,
            () if truncated else ("qemu-img", "check", "-f", "qcow2", "-r", "all", file),
            "nothing brings back what is missing: use another copy of it"
            if truncated
            else "keep a copy first",
        )


def _format_of(file: str, fact: FileFact) -> str:
    """The format that an image certainly has, as far as its name and its header agree; else ""."""
    if fact.kind != "regular" or fact.problem:
        return ""
    if fact.header is None:
        return "" if file.endswith(_SUFFIX) else "raw"
    return "qcow2" if file.endswith(_SUFFIX) else ""


def rebased(file: str, backing: str, form: str) -> tuple[str, ...]:
    """The command that writes name and format of the backing file into a header, while nobody has it open."""
    spelled = backing if is_plain_name(backing) else f"./{backing}"
    return ("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", spelled, "-F", form, file)
