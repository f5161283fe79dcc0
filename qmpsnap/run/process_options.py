"""Reads the options of a QEMU: of its command line, and of the files that this names. Blocking."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from qmpsnap.model.command_line.config_file import options_in
from qmpsnap.model.command_line.options import Option, split
from qmpsnap.run.process_paths import seen_as
from qmpsnap.run.safe_open import open_file

READCONFIG: Final = "-readconfig"
_LARGEST: Final = 1 << 20  # bytes; a machine's description has a few thousand


def process_options(pid: int, argv: Sequence[str]) -> tuple[Option, ...]:
    """The options of a process's command line; each file of `-readconfig` is replaced by the options in it.

    A file that is gone, or that we may not read, stays the option that names it. It may have been changed
    since QEMU has read it.
    """
    return tuple(_with_files(pid, split(argv)[1]))


def _with_files(pid: int, options: Sequence[Option]) -> Iterator[Option]:
    for option in options:
        text = _text(pid, option.value) if option.name == READCONFIG and option.value else None
        if text is None:
            yield option
        else:
            yield from options_in(text)


def _text(pid: int, file: str) -> str | None:
    for seen in seen_as(pid, file):
        try:
            descriptor = open_file(f"/proc/{pid}/root{seen}", follow=True)
        except (OSError, ValueError):
            continue
        with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as opened:
            try:
                return opened.read(_LARGEST)
            except OSError:
                continue
    return None
