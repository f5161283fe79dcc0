"""What the report of a session says about one of its machines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Account:
    """The boots and resets of a machine, for the report.

    Attributes:
        reset: How the machine is reset by default, and why.
        boots: Seconds of each boot.
        resets: Seconds of each reset.
        again: Why it was booted again, a line for each time.
        spare: What is to be said of a second QEMU; "": nothing.
    """

    reset: str = ""
    boots: list[float] = field(default_factory=list)
    resets: list[float] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    spare: str = ""
