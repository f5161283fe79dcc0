from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from qmpsnap.errors import CommandFailed, InvalidTarget, TargetExists
from qmpsnap.run.session import connect, recording
from qmpsnap.testing.server import Emit, Fail, Return

pytestmark = pytest.mark.usefixtures("nothing_stays")


def read(file):
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def messages(file):
    """Each message as (side, message), without ids, which qemu.qmp chooses."""
    _, *lines = read(file)
    return [
        (line["from"], {key: value for key, value in line["message"].items() if key != "id"})
        for line in lines
    ]


async def test_recording_has_every_message_in_the_order_of_the_wire(server, tmp_path):
    file = str(tmp_path / "r")
    stopped = Emit("STOP", {}, 5.25)
    server.answer("stop", Return(), stopped)
    server.answer("cont", Fail("no", "GenericError"))
    with recording(file) as recorder:
        async with connect(server.path, recorder=recorder) as session:
            await session.change("stop")
            with pytest.raises(CommandFailed):
                await session.change("cont", {"x": 1})
    capabilities = {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}
    assert [message for _, message in messages(file)][1:] == [
        capabilities,
        {"return": {}},
        {"execute": "stop"},
        {"return": {}},
        {"timestamp": {"seconds": 5, "microseconds": 250000}, "event": "STOP", "data": {}},
        {"execute": "cont", "arguments": {"x": 1}},
        {"error": {"class": "GenericError", "desc": "no"}},
    ]
    assert "QMP" in messages(file)[0][1]
    assert [side for side, _ in messages(file)] == [
        "qemu",
        "client",
        "qemu",
        "client",
        *["qemu"] * 2,
        "client",
        "qemu",
    ]


async def test_recording_begins_with_its_kind_and_tells_time_twice(server, tmp_path):
    file = str(tmp_path / "r")
    with recording(file) as recorder:
        async with connect(server.path, recorder=recorder) as session:
            await session.query("query-status")
    first, *lines = read(file)
    assert (first["qmpsnap"], first["version"]) == ("record", 1)
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert all(abs(line["at"] - first["at"] - line["time"]) < 0.1 for line in lines)
    assert Path(file).stat().st_mode & 0o777 == 0o600


async def test_recording_masks_secrets_of_commands_and_of_replies(server, tmp_path):
    file = str(tmp_path / "r")
    server.answer("object-add", Return())
    server.answer("qom-get", Return("hunter2"))
    server.answer("query-block", Return([{"file": "https://u:hunter2@h/d"}]))
    server.answer("query-named-block-nodes", Return([{"file": "rbd:pool/image:id=u:key=hunter2"}]))
    server.answer("query-memory", Return("fr\N{LATIN SMALL LETTER E WITH ACUTE}\x9b"))
    with recording(file) as recorder:
        async with connect(server.path, recorder=recorder) as session:
            await session.change("object-add", {"qom-type": "secret", "id": "s", "data": "hunter2"})
            assert await session.query("qom-get", {"path": "/objects/s", "property": "data"}) == "hunter2"
            await session.query("query-block")
            await session.query("query-named-block-nodes")
            await session.query("query-memory")
    text = Path(file).read_text()
    assert "hunter2" not in text
    assert ("qemu", {"return": "***"}) in messages(file)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_recording_never_takes_a_file_that_exists(tmp_path):
    (tmp_path / "r").write_text("mine")
    for name in ("r", "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(TargetExists), recording(str(tmp_path / name)):
            pytest.fail("recorded")
    assert (tmp_path / "r").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()


def test_recording_says_why_a_file_cannot_be_created(tmp_path):
    with pytest.raises(InvalidTarget, match="there is no directory"), recording(str(tmp_path / "a" / "r")):
        pytest.fail("recorded")


async def test_recording_that_can_no_longer_be_written_stops_and_is_logged_once(server, tmp_path):
    file = str(tmp_path / "r")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with recording(file) as recorder:
            resource.setrlimit(resource.RLIMIT_FSIZE, (Path(file).stat().st_size + 10, limits[1]))
            with capture_logs() as logs:
                async with connect(server.path, recorder=recorder) as session:
                    assert await session.query("query-status") == {"status": "running"}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [(entry["event"], entry["log_level"]) for entry in logs if "record" in entry["event"]] == [
        ("record.stopped", "warning")
    ]


def test_recording_of_nothing_is_none():
    with recording(None) as recorder:
        assert recorder is None
