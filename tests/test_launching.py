"""QEMU as a child; a program takes its place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import BadArgument, ConnectFailed, InvalidTarget, Unsupported
from qmpsnap.launching import launch, launcher_of
from qmpsnap.model.machine_description import Machine, MachineDisk
from qmpsnap.model.start import Start
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qmpsnap.vm import Launcher

pytestmark = pytest.mark.timeout(60)

# Writes its arguments on its console, and ends.
TELLS = """#!{python} -IS
import re, socket, sys
words = sys.argv[1:]
console = next(word for word in words if word.startswith("socket,id=console,"))
socket.socket(fileno=int(console.rpartition("fd=")[2])).send(b"hello")
sys.exit("\\n".join(word for word in words if word.startswith("{{")))
"""


def program(directory: Path, text: str) -> Path:
    path = directory / "qemu"
    path.write_text(text.format(python=sys.executable))
    path.chmod(0o700)
    return path


async def failure(machine: Machine, **options: object) -> ConnectFailed:
    with pytest.raises(ConnectFailed) as caught:
        async with launch(machine, **options):  # type: ignore[arg-type]
            pass
    return caught.value


async def test_launch_makes_the_disks_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = await failure(Machine(qemu=program(tmp_path, TELLS), disks=[MachineDisk("vda", "a b")]))
    assert f'"filename": "{tmp_path}/a b"' in error.message


async def test_launch_puts_logs_into_the_directory_of_the_start(tmp_path):
    machine = Machine(qemu=program(tmp_path, TELLS), disks=[MachineDisk("vda", "a b")])
    start = Start(disks={"vda": f"{tmp_path}/other"}, directory=str(tmp_path))
    error = await failure(machine, name="vm1", start=start)
    assert f'"filename": "{tmp_path}/other"' in error.message
    assert (tmp_path / "console.log").read_text() == "hello"
    assert "filename" in (tmp_path / "qemu.log").read_text()
    assert not (tmp_path / "qmp").exists()


CANNOT: Mapping[str, str] = {
    "missing": "No such file or directory",
    "a directory": "Permission denied",
    "not executable": "Permission denied",
    "no program": "Exec format error",
}


@pytest.mark.parametrize("what", CANNOT)
async def test_launch_says_why_there_is_no_qemu(tmp_path, what):
    path = tmp_path / "q"
    if what == "a directory":
        path.mkdir()
    elif what != "missing":
        path.write_text("nothing")
        path.chmod(0o600 if what == "not executable" else 0o700)
    before = set(Path("/proc/self/fd").iterdir())
    error = await failure(Machine(qemu=path))
    assert error.message == f"qemu: cannot start '{path}': {CANNOT[what]}"
    assert error.hint == ("install it, or give its path" if what == "missing" else "")
    assert set(Path("/proc/self/fd").iterdir()) == before


@pytest.mark.parametrize("parameter", ["log", "console_log"])
async def test_launch_says_which_log_it_cannot_open(tmp_path, parameter):
    with pytest.raises(InvalidTarget, match=r"cannot open the log '.*missing/log': No such file"):
        async with launch(Machine(), **{parameter: tmp_path / "missing/log"}):
            pass


async def test_launch_refuses_an_unknown_disk_of_a_start(tmp_path):
    with pytest.raises(Unsupported, match="'vdz'"):
        async with launch(Machine(qemu=tmp_path / "q"), start=Start(disks={"vdz": "/z"})):
            pass


SAYS = """#!/bin/sh
env | grep ^QMPSNAP_ | sort
printf '%s ' "$@"
exit 1
"""


def script(tmp_path: Path) -> Path:
    path = tmp_path / "start vm"
    path.write_text(SAYS)
    path.chmod(0o700)
    return path


async def said(launcher: Launcher, start: Start) -> str:
    with pytest.raises(ConnectFailed) as caught:
        async with launcher(start):
            pass
    return caught.value.message.partition("ended with status 1: ")[2]


async def test_launcher_of_a_command_passes_images_and_arguments_on(tmp_path, monkeypatch):
    monkeypatch.setenv("QMPSNAP_OURS", "1")
    (tmp_path / "d").mkdir()
    start = Start(disks={"vda": "/n a", "device[0]": "/n0"}, incoming=True, directory=str(tmp_path / "d"))
    words = await said(launcher_of(f"'{script(tmp_path)}' -m 64", env={"QMPSNAP_X": "2"}), start)
    assert words.partition(" -chardev socket,id=qmpsnap-qmp,fd=")[0] == "; ".join(
        (
            f"QMPSNAP_DIRECTORY={tmp_path}/d",
            "QMPSNAP_DISK_device_0_=/n0",
            "QMPSNAP_DISK_vda=/n a",
            "QMPSNAP_X=2",
            "-m 64 -S -incoming defer",
        )
    )
    assert "QMPSNAP_DISK_vda" in (tmp_path / "d/qemu.log").read_text()
    inherited = await said(launcher_of([script(tmp_path)]), Start())
    assert "QMPSNAP_DIRECTORY=; QMPSNAP_OURS=1; -chardev socket,id=qmpsnap,fd=" in inherited


async def test_launcher_of_a_command_refuses_two_disks_of_one_variable(tmp_path):
    with pytest.raises(Unsupported, match="QMPSNAP_DISK_a_b"):
        async with launcher_of([script(tmp_path)])(Start(disks={"a-b": "/1", "a.b": "/2"})):
            pass


def test_launcher_of_refuses_a_command_that_cannot_be_executed(tmp_path):
    (tmp_path / "plain").write_text("#!/bin/sh\n")
    own = script(tmp_path)
    for command in ("./nothere", "./plain", "qmpsnap-nothere", str(tmp_path)):
        with pytest.raises(BadArgument, match="does not exist, or cannot be executed"):
            launcher_of(command, cwd=tmp_path)
    launcher_of("sh -c true")
    launcher_of([f"./{own.name}"], cwd=tmp_path)


@each("command", ["", [], [""], None, 1, b"x", "a 'b", ["a", 1], "a\0"])
def test_launcher_of_refuses_what_is_no_command(command):
    with pytest.raises(BadArgument, match="command"):
        launcher_of(command)
