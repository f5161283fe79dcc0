"""What a record has to be as a whole before its word moves anything: its parts must speak of one chain.

A directory of records may have come with a bundle of images, so nothing is believed for standing there. A
record that breaks a rule is named and passed over, as one that is cut is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.names import invalid_names
from qmpsnap.model.record import IntentRecord, MomentRecord

_WITH_STATE = frozenset({"checkpoint", "save"})
_PARAMETERS = ("max-bandwidth",)  # of a migration, that an operation sets and so puts back


def is_plain(path: str) -> bool:
    """Whether a path is absolute, and holds nothing that a terminal or a script would obey."""
    return path.startswith("/") and not any(map(_controls, path))


def check_intent(record: IntentRecord) -> None:
    """Check that an operation names files of its own chains, and what it makes of them.

    Raises:
        ValueError: Naming what does not belong there.
    """
    state = record.state
    partial = (state.partial,) if state is not None else ()
    target = (record.target,) if record.target else ()
    _plain("made", record.made)
    _plain("overlays", record.overlays.values())
    _plain("folded", record.folded)
    _plain("renames", record.renames.values())
    if state is None and record.op in _WITH_STATE:
        raise ValueError(f"a {record.op} without its 'state'")
    _state(state)
    for name in record.was.parameters if record.was is not None else ():
        if name not in _PARAMETERS:
            raise ValueError(f"'parameters' holds {name!r}, which no operation sets")
    _among("overlays", record.overlays, record.chains)
    _among("made", record.made, (*record.overlays.values(), *partial, *target))
    _apart(record.overlays, record.chains)
    before = tuple(file for files in record.chains.values() for file in files)
    _among("folded", record.folded, before)
    _among("renames", record.renames, record.folded)
    for file, to in record.renames.items():
        if to not in invalid_names(file):
            raise ValueError(f"'renames' gives {file!r} the name {to!r}, which is none for a folded file")
    if record.folded:
        left = {
            disk: tuple(file for file in files if file not in record.folded)
            for disk, files in record.chains.items()
        }
        if record.op != "commit" or dict(record.after) != left:
            raise ValueError("'folded' is not what 'chains' has more than 'after'")
        _one_fold(record)


def _one_fold(record: IntentRecord) -> None:
    """Check that the folded files lie together in the disk's chain; a base that is no file is not in it."""
    chain, count = record.chains.get(record.disk, ()), len(record.folded)
    at = chain.index(record.folded[0]) if record.folded[0] in chain else len(chain)
    if chain[at : at + count] != record.folded:
        raise ValueError(f"'folded' lies not together in the chain of {record.disk!r}")


def check_moment(record: MomentRecord) -> None:
    """Check that a moment names layers of its own chains, and overlays that are none of these.

    Raises:
        ValueError: Naming what does not belong there.
    """
    _plain("covered", (file for file in record.covered.values() if file.startswith("/")))
    _state(record.state)
    for one in (record.overlays, *record.branches, *record.continued):
        _plain("overlays", one.values())
        _among("overlays", one, record.covered)
        _apart(one, record.chains)
    for disk, files in record.chains.items():
        if files and record.covered.get(disk) != files[0]:
            raise ValueError(
                f"'covered' of {disk!r} is {record.covered.get(disk)!r}, its chain begins {files[0]!r}"
            )
        if disk in record.formats and len(record.formats[disk]) != len(files):
            raise ValueError(f"'formats' of {disk!r} are not as many as its chain has files")


def _state(state: KeptState | None) -> None:
    if state is None:
        return
    _plain("state", (state.file,))
    # What is loaded from a store, and tells whether it may be removed: no name that others give snapshots.
    if state.tag and not re.fullmatch(r"qmpsnap-[0-9a-f]{8}", state.tag):
        raise ValueError(f"'tag' is {state.tag!r}, which is none of ours")


def _controls(character: str) -> bool:
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or code in {0x2028, 0x2029}


def _plain(key: str, paths: Iterable[str]) -> None:
    for path in paths:
        if not is_plain(path):
            raise ValueError(f"{key!r} holds {path!r}, which is no plain path")


def _among(key: str, names: Iterable[str], allowed: Iterable[str]) -> None:
    allowed = set(allowed)
    for name in names:
        if name not in allowed:
            raise ValueError(f"{key!r} holds {name!r}, which is not of its own chain")


def _apart(overlays: Mapping[str, str], chains: Mapping[str, tuple[str, ...]]) -> None:
    for disk, file in overlays.items():
        if file in chains.get(disk, ()):
            raise ValueError(f"'overlays' holds {file!r}, a layer that was there before")
