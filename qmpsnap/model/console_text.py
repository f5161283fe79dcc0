"""What a guest prints on its console: its last lines for a message, and whether its kernel has panicked."""

from __future__ import annotations

import re
from typing import Final

PANIC: Final = "Kernel panic - not syncing"
HALTED: Final = "---[ end Kernel panic"
"""Begins the last line of a Linux that has panicked and does not reboot (kernel/panic.c)."""

_LINES: Final = 15
_TRACE_LINES: Final = 80  # that a kernel prints at most between the reason of its panic and the end
_OVERLAP: Final = 256  # characters by which earlier output is found again
_CODES: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-~])|[\x00\x07\x0e\x0f]"
)


def without_codes(text: str) -> str:
    """Return a console's text without the codes that move the cursor and colour the text; lines end in LF."""
    return _CODES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")


def last_lines(text: str) -> str:
    """Return the last 15 lines of a console's output, without control codes and empty lines.

    The first of them is the reason of a panic, if that is further up, above a call trace.
    """
    lines = [line for raw in without_codes(text).splitlines() if (line := raw.rstrip())]
    last = lines[-_LINES:]
    reasons = [line for line in lines[-_TRACE_LINES:] if PANIC in line and HALTED not in line]
    if reasons and reasons[-1] not in last:
        last = [reasons[-1], "...", *last[2:]]
    return "\n".join(last)


def has_panicked(text: str, *, before: str = "") -> bool:
    """Whether a Linux kernel has panicked since an earlier moment.

    Args:
        text: The end of its console's output.
        before: The same at that moment. A panic in it does not count: the guest may have been reset or
            reverted since, which the console does not show.
    """
    known = before[-_OVERLAP:]
    at = text.rfind(known) if known else -1
    return PANIC in (text[at + len(known) :] if at >= 0 else text)


def has_halted(text: str) -> bool:
    """Whether the last line is that of a kernel that has panicked and does not reboot."""
    return HALTED in text.rstrip().rpartition("\n")[2]
