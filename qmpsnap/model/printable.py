"""Makes text safe to print: foreign text (of QEMU, guests, images, records) escaped, secrets masked."""

from __future__ import annotations

import re
from collections.abc import Iterable


def printable(text: str) -> str:
    """Return the text on one line, with control characters, newlines included, escaped.

    Idempotent.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_MASK = "***"
_KEYS = r"data|password|passwd|pass|passphrase|ticket|secret|token|credential"
# -object secret,data=…; -spice password=…; -fw_cfg …,string=…; -smbios type=11,value=io.systemd.credential…:
# ",," is a comma within a value.
_OPTION = re.compile(rf"(?i)(?<![\w-])((?:{_KEYS}|string|value)=)((?:[^,]|,,)+)")
_JSON = re.compile(rf'(?i)("(?:{_KEYS})"\s*:\s*)"(?:[^"\\]|\\.)*"')
_URL = re.compile(r"(://[^/@:\s]*:)[^/@\s]+@")  # a user's password in a URL


def masked(text: str) -> str:
    """The same text, with stars in place of possible secrets; rather too many than too few."""
    text = _JSON.sub(rf'\1"{_MASK}"', text)
    text = _URL.sub(rf"\1{_MASK}@", text)
    return text if text.lstrip().startswith("{") else _OPTION.sub(rf"\1{_MASK}", text)


def masked_all(argv: Iterable[str]) -> list[str]:
    """A command line for a log."""
    return [masked(word) for word in argv]
