"""A monitor that may not be reached: whose it is, and what to do."""

from __future__ import annotations

import os
import pwd
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qmpsnap.cli.main import run
from qmpsnap.errors import ConnectFailed
from qmpsnap.run.session import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
ROOT = os.geteuid() == 0


@contextmanager
def without_rights() -> Iterator[None]:
    """As nobody where we are root; else as we are, whom the modes below shut out as well."""
    if ROOT:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if ROOT:
            os.seteuid(0)


@pytest.fixture
def listening() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as sock:
        place = Path(folder)
        place.chmod(0o755)
        sock.bind(str(place / "qmp"))
        sock.listen()
        (place / "qmp").chmod(0o040)
        yield place / "qmp"
        place.chmod(0o700)


async def said(path: Path) -> ConnectFailed:
    with without_rights(), pytest.raises(ConnectFailed, match="Permission denied") as caught:
        async with connect(str(path)):
            pass
    return caught.value


async def test_connect_says_whose_the_socket_is(listening: Path) -> None:
    error = await said(listening)
    assert error.exit_code == 4
    owner, group = listening.owner(), listening.group()
    me = pwd.getpwuid(NOBODY).pw_name if ROOT else owner
    message = f"socket {listening} is {owner}'s, group {group}, mode 0040; you are {me}: "
    assert error.hint.startswith(message)
    assert error.hint.endswith("run as that user (sudo -u), or get permission to write it")


async def test_connect_says_which_directory_is_in_the_way(listening: Path) -> None:
    listening.parent.chmod(0o600)
    error = await said(listening)
    assert f"directory {listening.parent} is {Path('/proc/self').owner()}'s" in error.hint
    assert "mode 0600" in error.hint
    assert error.hint.endswith("or get permission to execute it")


def test_command_line_ends_with_4_and_says_it(listening: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-s", str(listening.with_name("none")), "chain"]) == 4  # all is imported by now
    capsys.readouterr()
    with without_rights():
        assert run(["-s", str(listening), "chain"]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert f"cannot connect to {listening}: Permission denied" in err
    assert "mode 0040; you are " in err
