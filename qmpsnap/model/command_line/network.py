"""Network connections: which of them a second QEMU can have, too."""

from __future__ import annotations

import re
from typing import Final

from qmpsnap.model.command_line.options import Option, keep_only, last, read_keys

_FORWARDED: Final = frozenset({"hostfwd", "tcp-ports", "udp-ports"})  # of user; and of passt
# An IPv4 address of which QEMU, too, says that it is a multicast group (net/dgram.c: IN_MULTICAST).
_GROUP: Final = re.compile(r"2(2[4-9]|3\d)\.")
_ALONE: Final = frozenset({"l2tpv3", "vhost-user", "vhost-vdpa", "af-xdp", "netmap"})


def network(option: Option, *, alone: bool) -> Option:
    """Return the option without forwarded ports; as it is, if no other QEMU of the machine runs.

    Raises:
        Unsupported: When only one QEMU can have this connection.
    """
    keys = read_keys(option, "type")
    kind, names = last(keys, "type"), {key.partition(".")[0] for key, _ in keys}
    if names & {"fd", "fds", "vhostfd", "vhostfds"} or last(keys, "addr.type") == "fd":
        option.refuse("its descriptor belongs to the first QEMU")
    if alone:
        return option
    if kind in _ALONE:
        option.refuse("its backend can serve only one machine")
    if kind == "tap" and "ifname" in names:
        option.refuse(f"the interface {last(keys, 'ifname')!r} belongs to the first QEMU")
    is_group = (kind == "socket" and "mcast" in names) or (
        kind == "dgram" and _GROUP.match(last(keys, "remote.host")) is not None
    )
    if kind in {"socket", "stream", "dgram"} and not is_group:
        option.refuse("its connection has two ends, and both are in use")
    return keep_only(option, "type", lambda key: key not in _FORWARDED)
