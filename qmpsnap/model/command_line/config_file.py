"""Reads the options in a file of QEMU's `-readconfig`.

A section is an option, and the text in its heading the option's id:

    [chardev "qmp"]
      backend = "socket"

The syntax is that of util/qemu-config.c (qemu_config_foreach), which reads lines with scanf: a value without
quotes is an empty one.
"""

from __future__ import annotations

import re
from typing import Final

from qmpsnap.model.command_line.options import Option, Pairs, write_keys

_NAMED: Final = re.compile(r'\[\s*(\S{1,63})\s+"([^"]{1,63})"')
_SECTION: Final = re.compile(r"\[([^\]]{1,63})")
_KEY: Final = re.compile(r'\s*(\S{1,63})(?:\s+=\s*"([^"]{1,1023}))?')


def options_in(text: str) -> tuple[Option, ...]:
    """Return each section as an option of the command line, in order; what cannot be read is left out."""
    sections: list[tuple[str, Pairs]] = []
    for line in text.split("\n"):
        if line.startswith("["):
            if named := _NAMED.match(line):
                sections.append((named[1], [("id", named[2])]))
            elif section := _SECTION.match(line):
                sections.append((section[1], []))
        elif (key := _KEY.match(line)) and sections and not line.startswith("#"):
            sections[-1][1].append((key[1], key[2] or ""))
    return tuple(Option(f"-{name}", write_keys(keys)) for name, keys in sections)
