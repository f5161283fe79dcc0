"""A storage daemon that is a script; what a real one does is tried in integration/test_offline.py."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import CommandFailed, ConnectFailed, ImageInUse, InvalidTarget
from qmpsnap.model.image_chain import ImageChain, ImageLayer
from qmpsnap.run.daemon import _not_opened, open_images, start_daemon
from qmpsnap.run.preflight import read_chains
from tests.headers import qcow2_bytes, with_tables

if TYPE_CHECKING:
    from pathlib import Path

DAEMON = f"""#!{sys.executable}
import json, os, socket, sys
monitor = socket.socket(fileno=int(sys.argv[2].rpartition("fd=")[2]))
def say(message):
    monitor.sendall(json.dumps(message).encode() + b"\\n")
def asked_for():
    text = ""
    while more := monitor.recv(4096).decode():
        text += more
        while text:
            try:
                asked, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield asked
say({{"QMP": {{"version": {{}}, "capabilities": []}}}})
held = []
for asked in asked_for():
    answer = []
    match asked["execute"]:
        case "qmp_capabilities":
            answer = {{}}
        case "blockdev-add":
            held.append(os.open(asked["arguments"]["file"]["filename"], os.O_RDONLY))
            answer = {{}}
        case "query-commands":
            answer = [{{"name": "quit"}}]
    say({{"return": answer, "id": asked.get("id")}})
    if asked["execute"] == "quit":
        open(sys.argv[0] + ".quit", "w").close()
        break
"""


@pytest.fixture
def daemon(tmp_path: Path) -> str:
    script = tmp_path / "daemon"
    script.write_text(DAEMON)
    script.chmod(0o755)
    return str(script)


async def test_daemon_is_ended_by_quit(tmp_path: Path, daemon: str) -> None:
    (tmp_path / "a.qcow2").write_bytes(with_tables(qcow2_bytes()))
    chains = read_chains({"vda": str(tmp_path / "a.qcow2")})
    async with open_images(chains, program=daemon, name="vm1") as target:
        assert (target.guest, target.outlives_us, await target.jobs()) == (None, False, ())
        assert (await target.features()).commands == {"quit"}
        assert not (tmp_path / "daemon.quit").exists()
    assert (tmp_path / "daemon.quit").exists()


async def test_missing_program_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConnectFailed) as caught:
        async with start_daemon(str(tmp_path / "none"), "vm1"):
            pass
    assert "qemu-storage-daemon" in caught.value.hint


def test_a_lock_of_another_process_is_told_from_other_failures() -> None:
    layer = ImageLayer("/d/a", "qcow2", 8, 1, 2)
    chain = ImageChain("vda", (layer,))

    def reply(desc: str) -> CommandFailed:
        return CommandFailed(desc, command="blockdev-add", arguments={}, qmp_class="GenericError", desc=desc)

    locked = _not_opened(chain, layer, reply('Failed to get "write" lock'), daemon=1)
    assert (type(locked), locked.file) == (ImageInUse, "/d/a")
    assert type(_not_opened(chain, layer, reply("Image is corrupt"), daemon=1)) is InvalidTarget
