"""Replaces, leaves out or refuses the options that only one process can use."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from qmpsnap.model.command_line.network import network
from qmpsnap.model.command_line.options import Option, Pairs, last, read_keys, write_keys

_ON: Final = frozenset({"on", "yes", "true"})
_ADDRESS_BYTES: Final = 107  # of a unix socket's path
_OF_LAUNCH: Final = ("qmp", "qemu.log")  # names that `launch` uses in the directory of a command line

_LEFT_OUT: Final = frozenset(
    {"-pidfile", "-daemonize", "-qmp", "-qmp-pretty", "-mon", "-gdb", "-s", "-incoming", "-loadvm"}
    | {"-writeconfig", "-dump-vmstate", "-qtest", "-qtest-log", "-full-screen", "-curses", "-sdl"}
)
_REFUSED: Final[Mapping[str, str]] = {
    "-add-fd": "its descriptor belongs to the first QEMU",
    "-readconfig": "the options in that file are not known here",
    "-tpmdev": "a TPM can serve only one machine",
}
# Character devices that each process can have.
_OWN_CHARDEVS: Final = frozenset(
    {"null", "vc", "ringbuf", "memory", "pty", "stdio", "msmouse", "wctablet", "braille", "testdev"}
    | {"qemu-vdagent", "dbus", "spicevmc", "spiceport"}
)
_DEVICES: Final[Mapping[str, str]] = {
    "vfio": "a device of the host can serve only one machine",
    "usb-host": "a device of the host can serve only one machine",
    "vhost-user": "its backend can serve only one machine",
    "vhost-vsock": "only one machine can have its address",
    "vhost-scsi": "only one machine can have its address",
    "ivshmem": "its memory is shared with other processes",
}
_OBJECTS: Final[Mapping[str, str]] = {
    "vhost-user-backend": "its backend can serve only one machine",
    "cryptodev-vhost-user": "its backend can serve only one machine",
    "rng-egd": "its backend can serve only one machine",
    "dbus-vmstate": "its backend can serve only one machine",
    "x-remote-object": "its backend can serve only one machine",
    "x-vfio-user-server": "only one process can have its socket",
    "input-linux": "a device of the host can serve only one machine",
}


class Own:
    """Changes options so that a second QEMU can have them beside the first.

    Args:
        directory: Directory of that QEMU, for its sockets and logs; "": none.
        alone: Whether the first QEMU has ended, so that its network connections are free.
    """

    def __init__(self, directory: str, *, alone: bool = False) -> None:
        self._directory = directory
        self._taken = set(_OF_LAUNCH)
        self._changes: Mapping[str, Callable[[Option], Option | None]] = {
            "-monitor": lambda _: Option("-monitor", "none"),
            "-serial": self._serial,
            "-parallel": self._serial,
            "-debugcon": self._serial,
            "-chardev": self._chardev,
            **dict.fromkeys(("-netdev", "-nic", "-net"), partial(network, alone=alone)),
            "-vnc": lambda _: Option("-vnc", "none"),
            "-display": _display,
            "-spice": self._spice,
            "-D": self._log,
            "-trace": self._trace,
            "-object": self._object,
            "-device": _device,
            "-icount": _icount,
            "-set": _set,
            "-audio": _audio,
            "-audiodev": _audio,
            "-fsdev": _share,
            "-virtfs": _share,
        }

    def of(self, option: Option) -> Option | None:
        """Return the option that the second QEMU gets instead; None: none.

        Raises:
            Unsupported: When the second QEMU cannot have it, and the machine would differ without it.
        """
        if option.name in _LEFT_OUT:
            return None
        if option.name in _REFUSED:
            option.refuse(_REFUSED[option.name])
        change = self._changes.get(option.name)
        return option if change is None else change(option)

    def _file(self, old: str) -> str:
        """Return a new path in the directory; "" if there is no directory."""
        if not self._directory:
            return ""
        name, number = posixpath.basename(old) or "file", 1
        fresh = name
        while fresh in self._taken:
            number += 1
            fresh = f"{number}-{name}"
        self._taken.add(fresh)
        return f"{self._directory}/{fresh}"

    def _socket(self, old: str) -> str:
        """Return a new path for a socket; "" if there is no directory, or the path would be too long."""
        path = self._file(old)
        return path if len(path.encode(errors="surrogateescape")) <= _ADDRESS_BYTES else ""

    def _serial(self, option: Option) -> Option:
        """Return a serial port, which the guest always has, with a new file or socket, or unconnected."""
        text = option.value or ""
        kind, _, rest = text.removeprefix("mon:").partition(":")
        if kind == "pty":
            return Option(option.name, text.removesuffix(f":{rest}"))
        path = rest.partition(",")[0]
        if kind == "file" and (file := self._file(path)):
            return Option(option.name, f"file:{file}")
        if (
            kind == "unix"
            and _listens(read_keys(Option("", rest), "path"))
            and (socket := self._socket(path))
        ):
            return Option(option.name, f"unix:{socket},server=on,wait=off")
        if kind in {"file", "unix", "pipe", "tcp", "telnet", "websocket", "udp"} or kind.startswith("/dev/"):
            return Option(option.name, "null")
        return option

    def _chardev(self, option: Option) -> Option:
        keys = read_keys(option, "backend")
        kind = last(keys, "backend")
        common = [(key, value) for key, value in keys if key in {"id", "mux"}]
        if log := last(keys, "logfile"):
            keys = [(key, value) for key, value in keys if key not in {"logfile", "logappend"}]
            common += [("logfile", file)] if (file := self._file(log)) else []
        if kind == "file" and (file := self._file(last(keys, "path"))):
            return _chardev("file", [*common, ("path", file), ("append", "on")])
        if kind == "socket" and _listens(keys) and (socket := self._socket(last(keys, "path"))):
            return _chardev("socket", [*common, ("path", socket), ("server", "on"), ("wait", "off")])
        if kind not in _OWN_CHARDEVS:
            return _chardev("null", common)
        path = {"path"} if kind == "pty" else set()
        if not log and not path & {key for key, _ in keys}:
            return option
        rest = [(key, value) for key, value in keys if key not in {"backend", "id", "mux", *path}]
        return _chardev(kind, [*common, *rest])

    def _spice(self, option: Option) -> Option:
        socket = self._socket("spice")
        if not socket:
            option.refuse("only one process can have its port, and there is no directory for a socket")
        drop = ("port", "tls-", "addr", "unix", "x509-", "password", "disable-ticketing", "ipv", "sasl")
        keys = [(key, value) for key, value in read_keys(option) if not key.startswith(drop)]
        keys += [("unix", "on"), ("addr", socket), ("disable-ticketing", "on")]
        return Option("-spice", write_keys(keys))

    def _log(self, option: Option) -> Option | None:
        file = self._file(option.value or "")
        return Option("-D", file) if file else None

    def _trace(self, option: Option) -> Option | None:
        keys = read_keys(option, "enable")
        file = self._file(last(keys, "file")) if last(keys, "file") else ""
        keys = [(key, value) for key, value in keys if key != "file"] + ([("file", file)] if file else [])
        return Option("-trace", write_keys(keys, "enable")) if keys else None

    def _object(self, option: Option) -> Option | None:
        keys = read_keys(option, "qom-type")
        kind = last(keys, "qom-type")
        if kind in _OBJECTS:
            option.refuse(_OBJECTS[kind])
        if kind in {"monitor-qmp", "monitor-hmp"}:
            return None
        if kind == "filter-dump":
            file = self._file(last(keys, "file"))
            common = [(key, value) for key, value in keys if key != "file"]
            return Option("-object", write_keys([*common, ("file", file)], "qom-type")) if file else None
        return option


def _listens(keys: Pairs) -> bool:
    return last(keys, "server") in _ON and last(keys, "path") != ""


def _chardev(kind: str, keys: Pairs) -> Option:
    return Option("-chardev", write_keys([("backend", kind), *keys], "backend"))


def _display(option: Option) -> Option:
    """Return no display in place of a window, a terminal or a server; with GL, one that nobody sees."""
    keys = read_keys(option, "type")
    if last(keys, "type") == "egl-headless":
        return option
    has_gl = last(keys, "gl", "off") not in {"off", "no", "false"}
    return Option("-display", "egl-headless" if has_gl else "none")


def _device(option: Option) -> Option:
    keys = read_keys(option, "driver")
    driver = last(keys, "driver")
    for prefix, why in _DEVICES.items():
        if driver.startswith(prefix):
            option.refuse(why)
    for key, _ in keys:
        if key.endswith("fd"):
            option.refuse(f"the descriptor {key} belongs to the first QEMU")
    if driver == "usb-mtp" and last(keys, "readonly", "on") not in _ON:
        option.refuse("two guests would write to the same directory; readonly=on allows it")
    return option


def _icount(option: Option) -> Option:
    if last(read_keys(option, "shift"), "rr") in {"record", "replay"}:
        option.refuse("only one process can record or replay a run")
    return option


def _set(option: Option) -> Option:
    if (option.value or "").partition(".")[0] in {"drive", "chardev", "netdev", "net"}:
        option.refuse("it changes an argument that is different in another QEMU")
    return option


def _audio(option: Option) -> Option:
    keys = read_keys(option, "driver")
    if last(keys, "driver") != "wav":
        return option
    named = [(key, value) for key, value in keys if key in {"id", "model"}]
    return Option(option.name, write_keys([("driver", "none"), *named], "driver"))


def _share(option: Option) -> Option:
    keys = read_keys(option, "driver")
    if last(keys, "driver") == "proxy":
        option.refuse("its backend can serve only one machine")
    if last(keys, "driver") == "local" and last(keys, "readonly") not in _ON:
        option.refuse("two guests would write to the same directory; readonly=on allows it")
    return option
