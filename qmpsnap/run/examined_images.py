"""Looks closer at images that nothing has open: where a chain is broken, and what needs a repair.

Blocking. The headers are a stranger's. A file that one names is opened only in the directories that the
caller allows, only for reading, and only if it is a regular file.
"""

# Paths stay as QEMU spells them:
# ruff: noqa: PTH118, PTH120, PTH208

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

from qmpsnap.errors import Refused, UnsafeImage
from qmpsnap.model.files import FileFact
from qmpsnap.model.header import backing_path, is_plain_name
from qmpsnap.model.image_chain import ImageChain
from qmpsnap.plan.checks.images import LONGEST_CHAIN, refuse_outside, refuse_truncated, refuse_unusable_header
from qmpsnap.plan.diagnosis.facts import Broken
from qmpsnap.run.image_headers import header_with_status, truncated_table
from qmpsnap.run.os_errors import reason
from qmpsnap.run.safe_open import WrongKind


def follow_broken(disk: str, image: str, refusal: Refused, allowed: Collection[str]) -> Broken:
    """Follow the headers of a chain that was refused, as far as they lead.

    Args:
        disk: The disk's name.
        image: Its active layer.
        refusal: Why its chain cannot be read.
        allowed: Real paths of directories in which files may be, besides that of the active layer.
    """
    own = os.path.realpath(os.path.dirname(image))
    near = (os.path.join(place, name) for place in (own, *allowed) for name in _names(place))
    return Broken(
        disk,
        refusal.message,
        refusal.hint,
        files=tuple(_followed(image, own, allowed)),
        near=tuple(path for path in near if os.path.isfile(path)),  # noqa: PTH113
    )


def damages(chains: Iterable[ImageChain]) -> dict[str, str]:
    """What is wrong with each image that must not be opened for changes before it is repaired."""
    found: dict[str, str] = {}
    for layer in (layer for chain in chains for layer in chain.layers if layer.header is not None):
        assert layer.header is not None  # noqa: S101 - for the type checker
        try:
            refuse_unusable_header(layer.file, layer.header)
        except UnsafeImage as error:
            found[layer.file] = error.message.removeprefix(f"{layer.file!r} ")
            continue
        except Refused:  # encrypted, which is no damage
            pass
        with suppress(OSError, ValueError):
            try:
                refuse_truncated(layer.file, truncated_table(layer))
            except UnsafeImage as error:
                found[layer.file] = error.message.removeprefix(f"{layer.file!r} ")
    return found


def _followed(image: str, own: str, allowed: Collection[str]) -> Iterator[tuple[str, FileFact]]:
    path, seen = image, set[str]()
    while path not in seen and len(seen) < LONGEST_CHAIN:
        seen.add(path)
        fact = _fact(path)
        yield path, fact
        recorded = fact.header.backing if fact.header is not None else None
        below = backing_path(recorded, of=path) if recorded and is_plain_name(recorded) else None
        if below is None:
            return
        if not os.path.lexists(below):
            yield below, FileFact("missing", real=below)
            return
        try:
            refuse_outside(os.path.realpath(below), file=below, own=own, allowed=allowed)
        except UnsafeImage:
            return
        path = below


def _fact(path: str) -> FileFact:
    try:
        header, status = header_with_status(path)
    except FileNotFoundError:
        return FileFact("missing", real=path)
    except WrongKind:
        return FileFact("other", real=path)
    except (OSError, ValueError) as error:
        return FileFact("regular", real=path, problem=reason(error))
    return FileFact("regular", status.st_size, header=header, real=path)


def _names(place: str) -> list[str]:
    try:
        return sorted(os.listdir(place))
    except OSError:
        return []
