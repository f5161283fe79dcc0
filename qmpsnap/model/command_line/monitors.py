"""Finds the QMP monitors of a command line, of QEMU or of a storage daemon, and the machine's name.

The syntax is that of QEMU's chardev/char.c (qemu_chr_parse_compat) and monitor/monitor.c (monitor_init_opts).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final, Literal

from msgspec import Struct

from qmpsnap.errors import Unsupported
from qmpsnap.model.command_line.options import Option, Pairs, last, read_keys

_ON: Final = frozenset({"on", "yes", "true", "y"})
_TCP: Final = re.compile(r"tcp:(?P<host>[^:,]*):(?P<port>[0-9]{1,5})(?:,(?P<rest>.*))?", re.DOTALL)
_UNIX: Final = "unix:"
_CHARDEV: Final = "chardev:"

Kind = Literal["unix", "abstract", "tcp", "fd", "none"]


class Endpoint(Struct, frozen=True):
    """Where a QMP monitor waits for its client.

    Attributes:
        kind: A unix socket with a path, one with an abstract name, a TCP port, a descriptor that the process
            inherited, or none: nobody can connect to it.
        text: What the command line says, for people.
        path: The path as the process spelled it, or the abstract name.
        host: The address on which the TCP port listens; "": on all.
        port: The TCP port; 0 if it is none.
        number: The descriptor; -1 if it is none.
    """

    kind: Kind
    text: str
    path: str = ""
    host: str = ""
    port: int = 0
    number: int = -1


def machine_name(options: Iterable[Option]) -> str:
    """The name that -name gives to the machine; "" if it has none."""
    name = ""
    for option in options:
        if option.name == "-name":
            name = last(_keys(option, "guest"), "guest", name)
    return name


def qmp_endpoints(options: Iterable[Option], *, daemon: bool = False) -> tuple[Endpoint, ...]:
    """Where each QMP monitor of a command line waits for its client, in order, each once.

    Human monitors are left out, and so is what cannot be read.

    Args:
        options: The options.
        daemon: Whether they are those of a storage daemon.
    """
    options = tuple(options)
    chardevs: dict[str, Pairs] = {}
    for option in options:
        if option.name == "-chardev":
            keys = _keys(option, "backend")
            chardevs[last(keys, "id")] = keys
    found: dict[Endpoint, None] = {}
    for option in options:
        for device in _devices(option, daemon=daemon):
            found[_endpoint(device, chardevs)] = None
    return tuple(found)


def _devices(option: Option, *, daemon: bool) -> Iterator[str]:
    """The character device of a QMP monitor that the option makes, in the syntax of -qmp."""
    is_qmp, implied = False, "chardev"
    match option.name:
        case "-qmp" | "-qmp-pretty" if option.value not in {None, "none"}:
            yield option.value or ""
        case "-mon":
            keys = _keys(option, implied)
            is_qmp = last(keys, "mode") == "control" or last(keys, "control") in _ON
        case "-monitor":  # a storage daemon's speaks QMP alone; QEMU's is a human monitor
            is_qmp = daemon
        case "-object":
            implied = "qom-type"
            is_qmp = last(_keys(option, implied), implied) == "monitor-qmp"
    if is_qmp:
        yield f"{_CHARDEV}{last(_keys(option, implied), 'chardev')}"


def _endpoint(device: str, chardevs: dict[str, Pairs]) -> Endpoint:
    if device.startswith(_CHARDEV):
        return _of_chardev(device, chardevs.get(device.removeprefix(_CHARDEV), []))
    if device.startswith(_UNIX):
        keys = _keys(Option("-qmp", device.removeprefix(_UNIX)), "path")
        return _of_unix(device.partition(",")[0], keys)
    if tcp := _TCP.fullmatch(device):
        keys = _keys(Option("-qmp", tcp["rest"] or ""), "")
        return _of_tcp(tcp["host"], int(tcp["port"]), keys)
    return Endpoint("none", device.partition(",")[0])


def _of_chardev(text: str, keys: Pairs) -> Endpoint:
    if last(keys, "backend") != "socket":
        return Endpoint("none", last(keys, "backend") or text)
    if descriptor := last(keys, "fd"):
        return Endpoint("fd", f"fd {descriptor}", number=_number(descriptor, none=-1))
    if path := last(keys, "path"):
        return _of_unix(f"unix:{path}", keys)
    return _of_tcp(last(keys, "host"), _number(last(keys, "port"), none=0), keys)


def _of_unix(text: str, keys: Pairs) -> Endpoint:
    path = last(keys, "path")
    if not _serves(keys) or not path:
        return Endpoint("none", text)
    if last(keys, "abstract") in _ON:
        return Endpoint("abstract", f"@{path}", path=path)
    return Endpoint("unix", text, path=path)


def _of_tcp(host: str, port: int, keys: Pairs) -> Endpoint:
    text = f"tcp:{host}:{port}"
    wrapped = any(last(keys, key) in _ON for key in ("telnet", "websocket", "tn3270"))
    if not port or not _serves(keys) or wrapped or last(keys, "tls-creds"):
        return Endpoint("none", text)
    return Endpoint("tcp", text, host=host, port=port)


def _serves(keys: Pairs) -> bool:
    return last(keys, "server") in _ON


def _number(text: str, *, none: int) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else none


def _keys(option: Option, implied: str) -> Pairs:
    try:
        return read_keys(option, implied)
    except Unsupported:
        return []
