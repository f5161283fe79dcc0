"""Names of this host's machines for completion, and which names can be completed at all."""

from __future__ import annotations

import asyncio
import re

import qmpsnap

# No quote, blank, expansion, pattern, history, comment or separator of bash, zsh or fish; click's
# completion scripts split at commas.
_WORD = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:@+=-]*")


def is_word(name: str) -> bool:
    """Whether every shell takes the name for one word without quotes, and no verb takes it for an option."""
    return _WORD.fullmatch(name) is not None


def machine_names(start: str) -> list[str]:
    """Names of this host's machines that begin with a text, as far as they can be completed."""
    if "/" in start:
        return []
    try:
        machines = asyncio.run(qmpsnap.list_machines())
    except OSError:
        return []
    return sorted({each.name for each in machines if each.name.startswith(start) and is_word(each.name)})
