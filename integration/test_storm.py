"""A monitor whose QEMU tells of more than anybody could read."""

from __future__ import annotations

import socket
import subprocess

import anyio
import pytest

from integration.machines import wait_for
from qmpsnap.run.session import connect

STORM = bytes.fromhex("ba0505 b002 ee ebfd")  # mov dx, 0x505; mov al, 2; out dx, al; jmp to the out
"""What a CPU runs from its first instruction on: pvpanic then tells of a crash kernel, without an end."""


@pytest.mark.parametrize("leaves", [False, True], ids=["quiet", "after a client that left its events"])
async def test_connect_stands_in_a_storm_of_events(qemu, tmp_path, leaves):
    rom = tmp_path / "rom"
    rom.write_bytes(bytes(0xFFF0) + STORM.ljust(16, b"\0"))
    path = tmp_path / "qmp"
    storm = [
        qemu.system, "-M", "pc", "-m", "64", "-nodefaults", "-display", "none", "-bios", rom,
        "-device", "pvpanic", "-qmp", f"unix:{path},server=on,wait=off",
    ]  # fmt: skip
    process = subprocess.Popen(storm, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _listens(path), "the monitor")
        for _ in range(6):
            if leaves:
                with socket.socket(socket.AF_UNIX) as before:
                    before.connect(str(path))
                    before.settimeout(60)
                    before.recv(4096)
                    before.sendall(b'{"execute": "qmp_capabilities"}')
                    while b"GUEST_CRASHLOADED" not in before.recv(65536):
                        pass
            given = socket.socket(socket.AF_UNIX)  # a given one has but one try
            given.connect(str(path))
            async with connect(given) as session:
                heard = anyio.Event()
                with session.subscribe(lambda event, heard=heard: heard.set()), anyio.fail_after(60):
                    await heard.wait()
                assert (await session.query("query-status"))["running"]
    finally:
        process.kill()
        process.wait()


def _listens(path):
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0
