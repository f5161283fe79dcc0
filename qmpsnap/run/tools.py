"""QEMU's own tools: where they are."""

from __future__ import annotations

from qmpsnap.errors import Unsupported
from qmpsnap.run.safe_open import find_program


def tool(name: str) -> str:
    """Path of one of QEMU's tools, as found on PATH.

    Not beside the QEMU that we are connected to: its user decides what lies there, and it would run as ours.

    Raises:
        Unsupported: When it is not installed.
    """
    found = find_program(name)
    if found is None:
        raise Unsupported(
            f"{name} is not installed, or not on PATH",
            feature=name,
            hint="install QEMU's tools (Debian: qemu-utils), or add their directory to PATH",
        )
    return found
