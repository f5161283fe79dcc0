"""Masks secrets in QMP messages and command lines, wherever these are logged or written to a file.

The tables of QMP were read from the schemas of QEMU 7.2, 10.0 and 11.1 (query-qmp-schema). Members such as
`key-secret`, `password-secret`, `passwordid` and `tls-creds` are ids of objects, and no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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

# Commands of the human monitor whose arguments contain, or may contain, a secret.
_SPOKEN = re.compile(
    r"\s*(set_password|object_add|sendkey|ringbuf_write|qom-set\s+\S+\s+\"?(?:data|password)|change\s+vnc)"
    r"\b\"?\s*"
)
_ASKED = re.compile(r"\s*qom-get\s+\S+\s+\"?(?:data|password)\b")
# A user's password in a URL: https://user:password@host/, iscsi://user%password@host/. In JSON a quote ends
# it; in a word of a command line it may be a part of it.
_URL = r"(://[^/@:%\s{end}]*[:%])[^/@\s{end}]+@"
_IN_A_URL, _IN_A_WORD = (re.compile(_URL.replace("{end}", end)) for end in ('"', ""))
# The key of a Ceph user in the name of an image: rbd:pool/image:id=admin:key=...
_IN_RBD = re.compile(r"(\brbd:[^\s\"]*?:key=)[^:\s\"]+")
# The cookie of a node that QEMU names by json:, in a text or in a text within JSON.
_COOKIE = re.compile(r'(\\*"cookie\\*":\s*\\*")[^"\\]+')

# Names of options whose values are secrets: -object secret,data=..., -spice password=..., file.cookie=...
_KEYS = r"data|password|passwd|pass|passphrase|ticket|secret|token|credential|cookie"
# Also -fw_cfg ...,string=... and -smbios type=11,value=io.systemd.credential...
# ",," is a comma within a value.
_OPTION = re.compile(rf"(?i)(?<![\w-])((?:{_KEYS}|string|value)=)((?:[^,]|,,)+)")
_JSON = re.compile(rf'(?i)("(?:{_KEYS})"\s*:\s*)"(?:[^"\\]|\\.)*"')

PASSWORD_MARKS = (b"@", b"=", b"cookie")
"""Text without any of these has nothing that without_passwords() masks.

The first two are in hardly any message, and are searched for 20 times as fast as "://" and ":key=" are.
"""


def mask_secrets(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a command with each secret replaced by the mask; to mask it again changes nothing.

    Args:
        message: {"execute": ..., "arguments": {...}}; other members are kept.
    """
    arguments = message.get("arguments")
    if not arguments or not isinstance(arguments, Mapping):
        return dict(message)
    command = message.get("execute", message.get("exec-oob"))
    names = _ANYWHERE | _OF_COMMAND.get(str(command), frozenset())
    members = {name: _mask(value, name, names) for name, value in arguments.items()}
    if command == "human-monitor-command":
        members["command-line"] = _mask_spoken(str(members.get("command-line", "")))
    elif command == "qom-set" and members.get("property") in _PROPERTIES:
        members["value"] = MASK
    return {**message, "arguments": members}


class SessionSecrets:
    """Masks the messages of one session: its commands, and the replies to those that ask for a secret."""

    def __init__(self) -> None:
        self._asked: set[object] = set()  # ids of commands whose replies are secrets

    def sent(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return a command with each secret replaced by the mask; its reply is masked when it comes."""
        if answers_secret(message):
            self._asked.add(message.get("id"))
        return mask_secrets(message)

    def received(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a greeting, a reply or an event: itself, unless it is a reply with a secret."""
        if not self._asked or (command_id := message.get("id")) not in list(self._asked):
            return message
        self._asked.discard(command_id)
        return {**message, "return": mask_answer(message["return"])} if "return" in message else message


def answers_secret(message: Mapping[str, Any]) -> bool:
    """Whether the reply to a command is a secret, or may contain one."""
    arguments = message.get("arguments")
    if not isinstance(arguments, Mapping):
        return False
    match message.get("execute"):
        case "qom-get":
            return arguments.get("property") in _PROPERTIES
        case "qom-list-get":
            return True
        case "human-monitor-command":
            return _ASKED.match(str(arguments.get("command-line", ""))) is not None
        case _:
            return False


def mask_answer(value: Any) -> object:  # noqa: ANN401 - JSON
    """Return what such a command returned, with each secret replaced by the mask.

    Args:
        value: A secret itself, or the properties of objects, as qom-list-get returns them.
    """
    match value:
        case list():
            return [mask_answer(item) if isinstance(item, list | dict) else item for item in value]
        case {"name": str(name), "value": _}:
            return {**value, "value": MASK} if name in _PROPERTIES else value
        case dict():
            return {
                key: mask_answer(item) if isinstance(item, list | dict) else item
                for key, item in value.items()
            }
        case _:
            return MASK


def without_passwords(text: str) -> str:
    """Return text with its secrets masked: passwords in URLs (https://user:password@host/), keys, cookies."""
    text = _IN_A_URL.sub(rf"\1{MASK}@", text) if "://" in text else text
    text = _IN_RBD.sub(rf"\1{MASK}", text) if ":key=" in text else text
    return _COOKIE.sub(rf"\1{MASK}", text) if '"cookie' in text or 'cookie\\"' in text else text


def masked(text: str) -> str:
    """A word of a command line, or a QMP message as text, with the mask in place of possible secrets.

    For logs: rather too many than too few.
    """
    text = without_passwords(_JSON.sub(rf'\1"{MASK}"', text))
    if text.lstrip().startswith("{"):
        return text
    return _OPTION.sub(rf"\1{MASK}", _IN_A_WORD.sub(rf"\1{MASK}@", text))


def masked_all(argv: Iterable[str]) -> list[str]:
    """A command line for a log."""
    return [masked(word) for word in argv]


def _mask(value: object, name: str, names: frozenset[str]) -> object:
    if name in names and not (name == "data" and isinstance(value, Mapping)):
        return MASK
    match value:
        case str():
            return without_passwords(value)
        case Mapping():
            return {key: _mask(inner, key, names) for key, inner in value.items()}
        case list() | tuple():
            return [_mask(inner, "", names) for inner in value]
        case _:
            return value


def _mask_spoken(line: str) -> str:
    found = _SPOKEN.match(line)
    return f"{found[1]} {MASK}" if found is not None else line
