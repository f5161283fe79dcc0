"""Who is connected to a socket of this host, as the kernel tells."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from qmpsnap.model.host_process import HostProcess
from qmpsnap.run.sockets import clients_of, tcp_clients_of, tcp_peers, tcp_sockets, unix_sockets


def inode(sock):
    return os.fstat(sock.fileno()).st_ino


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(2)
        yield sock


def test_clients_of_names_who_was_accepted_and_not_who_waits(listener):
    path = listener.getsockname()
    assert clients_of(path) is None
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as waiting:
        client.connect(path)
        assert clients_of(path) is None
        with closing(listener.accept()[0]):
            waiting.connect(path)
            (found,) = clients_of(path) or ()
            assert (found.pid, found.program.startswith("py")) == (os.getpid(), True)
            client.close()
            assert clients_of(path) is None


def test_clients_of_knows_nobody_where_no_socket_is(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "none", "\0abstract"):
        assert clients_of(str(path)) is None


def test_clients_of_ignores_the_clients_of_a_socket_that_had_the_path_before(listener):
    path = listener.getsockname()
    with socket.socket(socket.AF_UNIX) as client, socket.socket(socket.AF_UNIX) as second:
        client.connect(path)
        with closing(listener.accept()[0]):
            Path(path).rename(f"{path}.old")
            second.bind(path)
            second.listen(1)
            assert clients_of(path) is None
            assert clients_of(f"{path}.old") is not None


def test_unix_sockets_tells_names_files_and_peers(listener, tmp_path):
    hostile = "\0" + "a\n\x1b]0;x" + "\udcff"
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as client:
        abstract.bind(os.fsencode(hostile))
        abstract.listen(1)
        client.connect(listener.getsockname())
        with closing(listener.accept()[0]) as served:
            table = unix_sockets() or {}
            heard, named = table[inode(listener)], table[inode(abstract)]
            assert (heard.listening, heard.name) == (True, str(tmp_path / "s"))
            assert heard.file == (tmp_path / "s").stat().st_ino & 0xFFFF_FFFF
            assert (named.listening, named.name, named.file) == (True, hostile, 0)
            accepted = table[inode(served)]
            assert (accepted.listening, accepted.name, accepted.file) == (False, heard.name, heard.file)
            assert (accepted.peer, table[inode(client)].peer) == (inode(client), inode(served))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_tcp_clients_of_names_the_process_at_the_other_end(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((host, 0))
        listener.listen(1)
        port = listener.getsockname()[1]
        reached = "127.0.0.1" if host == "::" else host
        assert tcp_clients_of(reached, port) is None
        assert tcp_sockets()[inode(listener)].local == (host, port)
        client = socket.create_connection((reached, port))
        with closing(client), closing(listener.accept()[0]):
            (found,) = tcp_clients_of(reached, port) or ()
            assert isinstance(found, HostProcess)
            assert found.pid == os.getpid()
            assert tcp_clients_of("192.0.2.1", port) is None  # another host's
    assert tcp_clients_of(reached, port) is None


def test_clients_of_a_port_are_those_of_the_listener_at_that_address():
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with socket.create_server(("127.0.0.2", port)) as second:
            client = socket.create_connection(("127.0.0.2", port))
            with closing(client), closing(second.accept()[0]):
                assert tcp_clients_of("127.0.0.1", port) is None
                assert tcp_clients_of("192.0.2.1", port) is None
                assert len(tcp_clients_of("127.0.0.2", port) or ()) == 1
                assert len(tcp_clients_of("::ffff:127.0.0.2", port) or ()) == 1
                table = tcp_sockets()
                assert tcp_peers(table, table[inode(first)]) == (set(), ())
                assert tcp_peers(table, table[inode(second)]) == ({inode(client)}, ())
