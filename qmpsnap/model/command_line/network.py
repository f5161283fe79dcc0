"""Network cards: which of their connections another QEMU can have, too."""

from __future__ import annotations

from typing import Final

from qmpsnap.model.command_line.options import Option, keeping, last, read_keys

_ALONE: Final = frozenset({"l2tpv3", "vhost-user", "vhost-vdpa", "af-xdp", "netmap"})


def network(option: Option) -> Option:
    """The same without the ports that it forwards.

    Raises:
        Unsupported: When it is the end of something that has one end.
    """
    keys = read_keys(option, "type")
    full = {key for key, _ in keys}
    kind, named = last(keys, "type"), {key.partition(".")[0] for key, _ in keys}
    if kind in _ALONE:
        option.refuse("what it is connected to serves one machine")
    if named & {"fd", "fds", "vhostfd", "vhostfds"} or last(keys, "addr.type") == "fd":
        option.refuse("its descriptor is the first one's")
    if kind == "tap" and "ifname" in named:
        option.refuse(f"the interface {last(keys, 'ifname')!r} is the first one's")
    groups = (kind == "socket" and "mcast" in named) or (
        kind == "dgram" and "remote" in named and not full & {"local.port", "local.path"}
    )
    if kind in {"socket", "stream", "dgram"} and not groups:
        option.refuse("its connection has two ends, and both are in use")
    return keeping(option, "type", lambda key: key != "hostfwd")
