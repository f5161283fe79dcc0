from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from qmpsnap.run.examined_monitor import examine_monitor

if TYPE_CHECKING:
    from pathlib import Path


def test_who_is_connected_is_known(tmp_path: Path) -> None:
    path = f"{tmp_path}/qmp"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        assert examine_monitor(path) is None  # nobody listens yet
        server.listen(4)
        free = examine_monitor(path)
        assert free is not None
        assert (free.address, free.clients, free.stopped) == (path, None, None)
        client.connect(path)
        server.accept()[0].close()  # the look's own connection, which has gone
        accepted, _ = server.accept()
        with accepted:
            held = examine_monitor(path)
        assert held is not None
        assert held.clients is not None
        assert [one.pid for one in held.clients if not isinstance(one, str)] == [os.getpid()]


def test_a_tcp_port_without_a_listener_is_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert examine_monitor(f"tcp:127.0.0.1:{taken.getsockname()[1]}") is None
    assert examine_monitor("tcp:127.0.0.1:none") is None
