"""The console and the ports of a QEMU, from the other end of a socket pair."""

from __future__ import annotations

import socket
import stat
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from qmpsnap.errors import GuestFailed, InvalidTarget, TargetExists
from qmpsnap.run.channel import Console, Port, listener, pairs

pytestmark = pytest.mark.timeout(60)


@asynccontextmanager
async def console_of(log: str = ""):
    """A console, and the guest's end of it."""
    with pairs(["c"]) as ends:
        async with Console(ends["c"].ours, log) as console:
            yield console, ends["c"].theirs


async def test_pairs_are_inherited_by_number_and_closed_with_the_block():
    before = set(Path("/proc/self/fd").iterdir())
    with pairs(["a", "b"]) as ends:
        assert ends["a"].chardev == f"socket,fd={ends['a'].theirs.fileno()}"
        assert not ends["a"].ours.getblocking()
    assert set(Path("/proc/self/fd").iterdir()) == before


async def test_wait_for_returns_all_up_to_the_text_and_keeps_the_rest():
    async with console_of() as (console, guest):
        guest.send(b"boot\r\nlog")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_later, guest, b"in: and more")
            assert await console.wait_for("login:", limit=60) == "boot\r\nlogin:"
        assert await console.receive() == b" and more"
        assert console.tail == "boot\nlogin: and more"


async def send_later(guest: socket.socket, text: bytes) -> None:
    await anyio.sleep(0.01)
    guest.send(text)


async def test_wait_for_fails_with_the_last_lines_when_the_limit_is_over():
    async with console_of() as (console, guest):
        guest.send(b"".join(b"line %d\r\n" % number for number in range(100)))
        with pytest.raises(GuestFailed) as failed:
            await console.wait_for("login:", limit=0.5)
    lines = "\n".join(f"line {number}" for number in range(85, 100))
    assert failed.value.message == f"no 'login:' on the console within 0.5 s; its last lines: {lines}"
    assert failed.value.output == lines


async def test_wait_for_fails_when_linux_panics_for_good_meanwhile():
    end = "---[ end Kernel panic - not syncing: test ]---"
    async with console_of() as (console, guest):
        guest.send(f"{end}\r\n".encode())
        assert await console.wait_for("test ]", limit=60) == end[:-3]
        with pytest.raises(GuestFailed, match="no 'login:' on the console"):  # it may have been reset since
            await console.wait_for("login:", limit=0.02)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_later, guest, f"\r\nagain\r\n{end}\r\n".encode())
            with pytest.raises(
                GuestFailed, match="the guest has panicked before 'login:'; its last lines: ---"
            ):
                await console.wait_for("login:", limit=60)


async def test_wait_for_fails_and_receive_ends_when_qemu_has_ended():
    async with console_of() as (console, guest):
        guest.send(b"panic")
        guest.close()
        with pytest.raises(GuestFailed, match="the console ended before 'login:'; its last lines: panic"):
            await console.wait_for("login:", limit=60)
        assert await console.receive() == b"panic"
        with pytest.raises(anyio.EndOfStream):
            await console.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await console.send(b"x")


async def test_console_keeps_the_end_of_a_flood_and_its_log_has_all(tmp_path):
    log = tmp_path / "console.log"
    async with console_of(str(log)) as (console, guest):
        guest.setblocking(False)
        port = Port(guest)
        for number in range(64):
            await port.send(b"%6d\n" % number + b"x" * 16377)
        await port.send(b"the end")
        assert (await console.wait_for("the end", limit=60)).endswith("xthe end")
        assert len(console.tail) == 64 * 1024
        await port.send(b"y" * 500_000)
        guest.close()
        assert len(await console.receive(1 << 20)) <= 256 * 1024
    assert log.stat().st_size == 64 * 16384 + 7 + 500_000


async def test_console_goes_on_without_its_log_when_that_cannot_be_written(caplog):
    async with console_of("/dev/full") as (console, guest):
        guest.send(b"one")
        await console.wait_for("one", limit=60)
        guest.send(b"two")
        await console.wait_for("two", limit=60)
    assert [vars(record)["event"] for record in caplog.records] == ["console.log_failed"]


async def test_port_is_a_stream_until_qemu_ends():
    with pairs(["p"]) as ends:
        port, guest = Port(ends["p"].ours), Port(ends["p"].theirs)
        guest_end = ends["p"].theirs
        guest_end.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(port.send, b"z" * 1_000_000)
            received = 0
            while received < 1_000_000:
                received += len(await guest.receive())
        await guest.send(b"answer")
        assert await port.receive(3) == b"ans"
        assert await port.receive() == b"wer"
        guest_end.close()
        with pytest.raises(anyio.EndOfStream):
            await port.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await port.send(b"x")


def test_listener_makes_a_socket_for_this_user_and_removes_it(tmp_path):
    path = tmp_path / "qmp"
    with listener(str(path)) as sock:
        assert sock is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()
    with listener("") as sock:
        assert sock is None


def test_listener_leaves_a_file_that_is_not_its_own(tmp_path):
    path = tmp_path / "qmp"
    with listener(str(path)):
        path.unlink()
        path.touch()
    assert path.exists()
    with pytest.raises(TargetExists), listener(str(path)):
        pass
    assert path.is_file()


@pytest.mark.parametrize("name", ["missing/qmp", "a" * 120])
def test_listener_says_why_there_can_be_no_socket(tmp_path, name):
    with pytest.raises(InvalidTarget) as refused, listener(str(tmp_path / name)):
        pass
    assert refused.value.file == str(Path(tmp_path / name))
