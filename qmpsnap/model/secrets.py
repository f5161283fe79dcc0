"""Which members of QMP messages are secrets: they are masked wherever messages are written down.

The tables were read from the schemas of QEMU 7.2, 10.0 and 11.1 (query-qmp-schema). Members such as
`key-secret`, `password-secret`, `passwordid` and `tls-creds` are ids of objects, and no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

MASK = "***"
"""What a secret is replaced with."""

# Members of any command's arguments, at any depth: change-vnc-password, set_password; curl's cookies.
_ANYWHERE = frozenset({"password", "cookie"})

# Arguments of one command: a secret object's value, what is typed into the guest, a launch secret.
_OF_COMMAND: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "object-add": frozenset({"data"}),
        "sev-inject-launch-secret": frozenset({"secret"}),
        "send-key": frozenset({"keys"}),
        "input-send-event": frozenset({"events"}),
        "ringbuf-write": frozenset({"data"}),
    }
)

# QOM properties with a secret: of a secret object, and of a VNC or SPICE server.
_PROPERTIES = frozenset({"data", "password"})

# Commands of the human monitor whose words hold, or may hold, one of these.
_SPOKEN = re.compile(
    r"\s*(set_password|object_add|sendkey|ringbuf_write|qom-set\s+\S+\s+(?:data|password)|change\s+vnc)\b\s*"
)
_IN_A_URL = re.compile(r"(://[^/@:\s\"]*:)[^/@\s\"]+@")


def masked(message: Mapping[str, Any]) -> dict[str, Any]:
    """A command as it is written down: with each secret replaced by the mask; masked twice it is the same.

    Args:
        message: {"execute": ..., "arguments": {...}}; other members are kept.
    """
    arguments = message.get("arguments")
    if not arguments or not isinstance(arguments, Mapping):
        return dict(message)
    command = message.get("execute", message.get("exec-oob"))
    names = _ANYWHERE | _OF_COMMAND.get(str(command), frozenset())
    kept = {name: _masked(value, name, names) for name, value in arguments.items()}
    if command == "human-monitor-command":
        kept["command-line"] = _spoken(str(kept.get("command-line", "")))
    elif command == "qom-set" and kept.get("property") in _PROPERTIES:
        kept["value"] = MASK
    return {**message, "arguments": kept}


def answers_secret(message: Mapping[str, Any]) -> bool:
    """Whether the reply to a command is a secret."""
    arguments = message.get("arguments")
    return (
        message.get("execute") == "qom-get"
        and isinstance(arguments, Mapping)
        and arguments.get("property") in _PROPERTIES
    )


def without_passwords(text: str) -> str:
    """Text with the password masked in each URL, as in https://user:password@host/."""
    return _IN_A_URL.sub(rf"\1{MASK}@", text) if "://" in text else text


def _masked(value: object, name: str, names: frozenset[str]) -> object:
    if name in names and not (name == "data" and isinstance(value, Mapping)):
        return MASK
    match value:
        case str():
            return without_passwords(value)
        case Mapping():
            return {key: _masked(inner, key, names) for key, inner in value.items()}
        case list() | tuple():
            return [_masked(inner, "", names) for inner in value]
        case _:
            return value


def _spoken(line: str) -> str:
    found = _SPOKEN.match(line)
    return f"{found[1]} {MASK}" if found is not None else line
