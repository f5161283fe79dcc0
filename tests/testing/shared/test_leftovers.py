"""What a test left in the machine's directory."""

from __future__ import annotations

import asyncio
import os

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.model.record import MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_machine import a_machine
from qmpsnap.testing.shared.leftovers import (
    end_jobs,
    put_back_logs,
    put_back_records,
    record_now,
    remove_more,
    without_holes,
)
from tests.each import each
from tests.plan.moments import MOMENT
from tests.run.operations import vm_of


def written(directory, record):
    file = directory / record.file_name
    file.write_text(to_json(record))
    return file


def test_put_back_records_lets_the_directory_hold_these_alone(tmp_path):
    kept, changed, gone = (tmp_path / name for name in ("kept", "changed", "gone"))
    for path in (kept, changed):
        path.write_text("new")
    (tmp_path / "more").write_text("x")
    (tmp_path / "link").symlink_to("/nowhere")
    put_back_records(tmp_path, {kept: b"new", changed: b"old", gone: b"back"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "kept": "new",
        "changed": "old",
        "gone": "back",
    }


def test_remove_more_leaves_these_paths_alone_whatever_else_there_is(tmp_path):
    for directory in ("kept/empty", "kept/more/deep", "more/deep"):
        (tmp_path / directory).mkdir(parents=True)
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "file").touch()
    for file in ("file", "kept/file", "kept/more/deep/file", "more/deep/file", "gone"):
        (tmp_path / file).touch()
    (tmp_path / "kept" / "link").symlink_to(outside)
    os.mkfifo(tmp_path / "kept" / "fifo")
    remove_more(tmp_path, {tmp_path / name for name in ("file", "kept/file", "kept/empty", "not there")})
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["file", "kept", "kept/empty", "kept/file"]
    assert (outside / "file").exists()


def test_log_has_its_first_content_again_and_what_is_written_to_it_follows(tmp_path):
    at_its_end, where_it_was = tmp_path / "a", tmp_path / "w"
    with at_its_end.open("ab", buffering=0) as first, where_it_was.open("wb", buffering=0) as second:
        for log in (first, second):
            log.write(b"boot\nthe test before\n")
        put_back_logs({at_its_end: b"boot\n", where_it_was: b"boot\n"})
        assert (at_its_end.read_bytes(), where_it_was.read_bytes()) == (b"boot\n", b"boot\n")
        for log in (first, second):
            log.write(b"now\n")
    assert at_its_end.read_bytes() == b"boot\nnow\n"
    assert where_it_was.read_bytes() == b"boot\n" + 16 * b"\0" + b"now\n"
    assert without_holes(where_it_was.read_bytes()) == b"boot\nnow\n"


def test_log_that_a_test_has_removed_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        put_back_logs({tmp_path / "gone": b"boot"})


def test_record_now_has_the_last_branch_alone(tmp_path):
    old, new = ({disk: f"/vm/{disk}-{age}.qcow2" for disk in MOMENT.overlays} for age in ("old", "new"))
    written(tmp_path, replace(MOMENT, branches=(old, new)))
    written(tmp_path, replace(MOMENT, id=f"{MOMENT.id}-2", name="another"))
    ((path, content),) = record_now(tmp_path, MOMENT.name, active=new.values()).items()
    record = from_json(content.decode())
    assert isinstance(record, MomentRecord)
    assert (path.parent, path.name) == (tmp_path, record.file_name)
    assert (record.name, record.branches) == (MOMENT.name, (new,))


def test_record_now_is_empty_when_the_snapshot_has_no_record(tmp_path):
    assert record_now(tmp_path, "none", active=[]) == {}


@each(("status", "migration"), [("running", "cancelling"), ("finish-migrate", "completed")])
async def test_end_jobs_returns_once_a_migration_that_it_cancels_has_ended(
    status: str, migration: str
) -> None:
    disks = graph(vda="base*")
    fake = FakeTarget(disks, machine=a_machine(disks, status=status, migration=migration))
    task = asyncio.create_task(end_jobs(vm_of(fake)))
    while not fake.sent:  # noqa: ASYNC110 - nothing tells of what is sent
        await anyio.sleep(0.01)
    await anyio.sleep(0.05)
    assert not task.done()
    assert fake.sent[0] == ("migrate_cancel", {})
    fake.guest.now = replace(fake.guest.now, status="running", migration="cancelled")
    await task
