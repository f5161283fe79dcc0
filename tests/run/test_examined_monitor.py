from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

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


@pytest.mark.parametrize(
    ("said", "is_monitor"),
    [(b"QEMU 10.0.2 monitor\r\n(qemu) ", False), (b'{"QMP": {}}\r\n', True), (b"", True)],
)
def test_what_does_not_speak_qmp_is_no_monitor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: bytes, *, is_monitor: bool
) -> None:
    monkeypatch.setattr("qmpsnap.run.examined_monitor._LIMIT", 30)  # it speaks, or ends, before that
    path = f"{tmp_path}/hmp"
    with socket.socket(socket.AF_UNIX) as local, socket.create_server(("127.0.0.1", 0)) as remote:
        local.bind(path)
        local.listen()
        for server, address in ((local, path), (remote, f"tcp:127.0.0.1:{remote.getsockname()[1]}")):
            speaker = threading.Thread(target=_accept, args=(server, said))
            speaker.start()
            assert (examine_monitor(address) is not None) is is_monitor, address
            speaker.join()


def _accept(server: socket.socket, said: bytes) -> None:
    with server.accept()[0] as client:
        client.sendall(said)


def test_a_tcp_port_without_a_listener_is_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert examine_monitor(f"tcp:127.0.0.1:{taken.getsockname()[1]}") is None
    assert examine_monitor("tcp:127.0.0.1:none") is None


def test_the_brackets_of_an_address_are_no_part_of_the_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp:[127.0.0.1]:{server.getsockname()[1]}"
        found = examine_monitor(address)
    assert found is not None
    assert found.address == address
