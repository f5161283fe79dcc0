"""Replaces the guest's memory on a command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from qmpsnap.model.command_line.options import Option, Pairs, last, machine_key, read_keys, write_keys
from qmpsnap.model.start import USES_PATH, GuestMemory, Start

_BACKENDS: Final = "memory-backend-"
_ON: Final = frozenset({"on", "yes", "true"})


def with_memory(options: Sequence[Option], start: Start) -> tuple[list[Option], tuple[str, ...]]:
    """Return the options with the memory of a `Start`, and the arguments that have to be appended.

    A memory file that the first QEMU maps shared is never shared with this one. If the guest's memory is that
    of a `Start`, no other object is shared memory: QEMU leaves that out of the VM state then.

    Raises:
        Unsupported: When the machine has more than one memory object, or an option cannot be read.
    """
    backend = machine_key(options, "memory-backend")
    changed: list[Option] = []
    is_replaced = False
    for option in options:
        keys = read_keys(option, "qom-type") if option.name == "-object" else []
        name = last(keys, "id")
        if (
            option.name == "-numa"
            and "memdev" in dict(read_keys(option, "type"))
            and start.memory is not None
        ):
            option.refuse("its memory consists of several objects, not of one file")
        elif option.name in {"-mem-path", "-mem-prealloc"} and start.memory is not None:
            continue
        elif not last(keys, "qom-type").startswith(_BACKENDS):
            changed.append(option)
        elif start.memory is not None and name == backend:
            is_replaced = True
            changed.append(_object(start.memory, name))
        elif last(keys, "qom-type") == "memory-backend-file" and _is_written(keys):
            changed.append(_private(option, keys, is_main=name == backend))
        elif start.memory is not None and _can_be_private(keys):
            private = [*((key, value) for key, value in keys if key != "share"), ("share", "off")]
            changed.append(Option("-object", write_keys(private, "qom-type")))
        else:
            changed.append(option)
    if is_replaced:
        start = replace(start, memory=None)
    return changed, start.arguments


def _is_written(keys: Pairs) -> bool:
    """Whether the guest may write to the file: it is mapped shared, and not read-only."""
    return last(keys, "share") in _ON and last(keys, "readonly") not in _ON


def _can_be_private(keys: Pairs) -> bool:
    """Whether the memory is shared, and no file: it can be private as well. A memfd is shared by default."""
    default = {"memory-backend-memfd": "on", "memory-backend-ram": "off"}.get(last(keys, "qom-type"))
    return default is not None and last(keys, "share", default) in _ON


def _object(memory: GuestMemory, name: str) -> Option:
    return Option("-object", json.dumps({**memory.properties, "id": name}))


def _private(option: Option, keys: Pairs, *, is_main: bool) -> Option:
    """Return private memory in place of a shared file; its content is loaded with the VM state."""
    if not is_main:
        option.refuse("two guests would write to the same file")
    kept = [(key, value) for key, value in keys if key in {"id", "size", USES_PATH}]
    memory = [("qom-type", "memory-backend-memfd"), *kept, ("share", "on")]
    return Option("-object", write_keys(memory, "qom-type"))
