from __future__ import annotations

from pathlib import Path

import pytest

import qmpsnap
from qmpsnap.errors import InvalidTarget
from qmpsnap.testing.shared.replays import replays

RECORD = """{"qmpsnap": "record", "version": 1, "at": 1.0}
{"time": 0, "at": 1, "from": "qemu", "message": {"QMP": {"version": {}, "capabilities": []}}}
{"time": 0, "at": 1, "from": "client", "message": {"execute": "qmp_capabilities", "id": "0"}}
{"time": 0, "at": 1, "from": "qemu", "message": {"return": {}, "id": "0"}}
"""


async def test_replays_serve_records_of_a_folder_until_the_block_ends(tmp_path):
    (tmp_path / "a.jsonl").write_text(RECORD)
    with replays(tmp_path) as served:
        sockets = [served.serve("a.jsonl"), served.serve(tmp_path / "a.jsonl")]
        for socket in sockets:
            with pytest.raises(qmpsnap.CommandFailed, match="the record has ended"):
                async with qmpsnap.connect(socket, shared_fs=False):
                    pytest.fail("connected")
        assert len(set(sockets)) == 2
        refused = served.refused
    assert len(refused) >= 2
    assert all("the record has ended" in refusal for refusal in refused)
    assert not any(Path(socket).exists() for socket in sockets)


def test_replays_refuse_what_is_no_record(tmp_path):
    with replays(tmp_path) as served, pytest.raises(InvalidTarget):
        served.serve("none.jsonl")
