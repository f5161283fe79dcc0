from __future__ import annotations

import os
import socket

import anyio
import pytest
import structlog.testing

from qmpsnap.errors import ConnectFailed
from qmpsnap.run.session.dial import Peer, describe, dial, peer_of
from tests.each import each


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen(0)
        yield sock


async def test_dial_connects_to_a_unix_socket(listener):
    with await dial(listener.getsockname()) as sock:
        assert peer_of(sock, None) == Peer(is_unix=True, pid=os.getpid())


@each("form", ["tcp:127.0.0.1:{}", "tcp:localhost:{}", "tuple"])
async def test_dial_connects_by_tcp(form):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = ("127.0.0.1", port) if form == "tuple" else form.format(port)
        with await dial(address) as sock:
            assert peer_of(sock, None) == Peer(is_unix=False, pid=None)


@each("address", ["tcp:", "tcp:host", "tcp::1", "tcp:host:http", "tcp:127.0.0.1:65536"])
async def test_dial_refuses_an_address_without_host_and_port(address):
    with pytest.raises(ConnectFailed, match="tcp:HOST:PORT"):
        await dial(address)


async def test_dial_names_path_and_reason_when_there_is_no_socket(tmp_path):
    with pytest.raises(ConnectFailed, match=r"/none: No such file or directory") as caught:
        await dial(str(tmp_path / "none"))
    assert "QEMU running" in caught.value.hint


async def test_dial_says_how_a_tcp_port_is_given_when_it_looks_like_one():
    with pytest.raises(ConnectFailed, match="No such file or directory") as caught:
        await dial("localhost:4444")
    assert caught.value.hint == "a TCP port is given as tcp:localhost:4444"


async def test_dial_names_path_and_reason_when_nobody_listens(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    with pytest.raises(ConnectFailed, match=r"/s: Connection refused") as caught:
        await dial(path)
    assert "ended, or does not listen yet" in caught.value.hint


async def test_dial_names_the_reason_when_tcp_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectFailed, match=f"tcp:127.0.0.1:{port}") as caught:
        await dial(("127.0.0.1", port))
    assert caught.value.hint.startswith("nobody listens there")


@each("name", ["vda.qcow2", ""])
async def test_dial_says_what_is_no_socket(tmp_path, name):
    (tmp_path / "vda.qcow2").touch()
    with pytest.raises(ConnectFailed, match="it is not a socket") as caught:
        await dial(str(tmp_path / name))
    assert caught.value.hint.startswith("give the PATH of -qmp")


async def test_dial_names_path_and_reason_when_permission_is_denied(tmp_path):
    (tmp_path / "d").mkdir(mode=0o700)
    path = str(tmp_path / "d" / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        (tmp_path / "d").chmod(0)
        if root := os.geteuid() == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(ConnectFailed, match=r"/s: Permission denied") as caught:
                await dial(path)
        finally:
            if root:
                os.seteuid(0)
            (tmp_path / "d").chmod(0o700)
    assert caught.value.hint.startswith("directory /")  # which one depends on who runs this
    assert "; you are " in caught.value.hint


async def test_dial_names_the_reason_when_the_path_is_too_long():
    with pytest.raises(ConnectFailed, match="too long"):
        await dial("/" + "x" * 200)


async def test_dial_waits_while_the_backlog_is_full(listener):
    path = listener.getsockname()
    with await dial(path) as first:
        with anyio.move_on_after(0.02):
            await dial(path)
            pytest.fail("a full backlog let us in")
        async with anyio.create_task_group() as group:
            group.start_soon(_accept_late, listener)
            with anyio.fail_after(30):
                second = await dial(path)
            with second:
                assert second.getpeername() == first.getpeername()


async def _accept_late(listener):
    await anyio.sleep(0.01)
    listener.accept()[0].close()


async def test_dial_warns_when_everybody_may_write_to_the_socket(listener, tmp_path):
    path = tmp_path / "s"
    path.chmod(0o777)
    opened = [folder for folder in tmp_path.parents if not folder.stat().st_mode & 0o001]
    modes = [folder.stat().st_mode for folder in [tmp_path, *opened]]
    for folder in [tmp_path, *opened]:
        folder.chmod(0o711)
    try:
        with structlog.testing.capture_logs() as logs:
            (await dial(str(path))).close()
    finally:
        for folder, mode in zip([tmp_path, *opened], modes, strict=True):
            folder.chmod(mode)
    assert [entry["event"] for entry in logs] == ["socket.found_writable_by_others"]


async def test_dial_does_not_warn_when_a_directory_keeps_others_out(listener, tmp_path):
    (tmp_path / "s").chmod(0o777)
    tmp_path.chmod(0o700)
    with structlog.testing.capture_logs() as logs:
        (await dial(str(tmp_path / "s"))).close()
    assert logs == []


def test_peer_of_does_not_take_the_maker_of_a_socket_pair_for_qemu():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours, None) == Peer(is_unix=True, pid=None)
        assert peer_of(ours, 42) == Peer(is_unix=True, pid=42)


def test_peer_of_knows_nothing_of_what_is_no_socket():
    assert peer_of(None, None) == Peer(is_unix=False, pid=None)


def test_describe_spells_an_address_as_dial_takes_it():
    assert describe(("::1", 4444)) == "tcp:::1:4444"
    assert describe("/run/s") == "/run/s"
