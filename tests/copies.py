"""A script in qemu-img's place, and the files that it made."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

COPIES = """case $1 in convert) for last; do :; done; echo copy >"$last";; esac"""


def tool_in(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a qemu-img that writes down what it is to do, and then does something; at first it copies."""
    program = place / "bin" / "qemu-img"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    def make(script: str) -> None:
        program.write_text(f"#!/bin/sh\necho $1 >>{shlex.quote(str(place / 'told'))}\n{script}\n")
        program.chmod(0o755)

    make(COPIES)
    return make


def files(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
