import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path

import anyio
import pytest

from qmpsnap.run.disk import Stopped, in_long_thread, in_thread, rename_exclusively


async def test_in_thread_returns_what_the_work_returns():
    assert await in_thread(lambda: 7) == 7


async def test_in_thread_raises_what_the_work_raises():
    with pytest.raises(ValueError, match="seven"):
        await in_thread(lambda: (_ for _ in ()).throw(ValueError("seven")).__next__())


class Work:
    """Work that is seen to begin, and to end."""

    def __init__(self):
        self.began = asyncio.Event()
        self.ended = False
        self._loop = asyncio.get_running_loop()

    def __call__(self):
        self._loop.call_soon_threadsafe(self.began.set)
        time.sleep(0.05)
        self.ended = True


async def test_in_thread_waits_for_the_end_when_asyncio_cancels_it_twice():
    work = Work()
    task = asyncio.create_task(in_thread(work))
    await work.began.wait()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_in_thread_waits_for_the_end_when_a_scope_cancels_it():
    work = Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(in_thread, work)
            await work.began.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert work.ended


async def test_in_long_thread_stops_the_work_when_it_is_cancelled():
    began, loop, stopped = asyncio.Event(), asyncio.get_running_loop(), []

    def work(stop):
        loop.call_soon_threadsafe(began.set)
        stopped.append(stop.wait(30))
        raise Stopped

    task = asyncio.create_task(in_long_thread(work))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stopped == [True]
    assert await in_long_thread(lambda stop: stop.is_set()) is False


async def test_in_thread_ends_quietly_when_the_work_fails_after_a_cancel(caplog):
    work = Work()

    def fail():
        work()
        raise ValueError("nobody hears it")

    task = asyncio.create_task(in_thread(fail))
    await work.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.records == []


def test_rename_exclusively_gives_a_file_its_new_name(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("data")
    rename_exclusively(str(old), str(new))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert new.read_text() == "data"


def test_rename_exclusively_never_replaces_a_file(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("data")
    new.write_text("precious")
    with pytest.raises(FileExistsError):
        rename_exclusively(str(old), str(new))
    assert (old.read_text(), new.read_text()) == ("data", "precious")


def test_rename_exclusively_never_replaces_a_symlink_that_leads_nowhere(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("data")
    new.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        rename_exclusively(str(old), str(new))
    assert new.is_symlink()


@pytest.mark.parametrize("relative", [True, False])
def test_rename_exclusively_renames_a_symlink_itself(tmp_path, relative):
    (tmp_path / "file").write_text("data")
    (tmp_path / "link").symlink_to("file")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        names = ("link", "new") if relative else (str(tmp_path / "link"), str(tmp_path / "new"))
        rename_exclusively(*names, directory=descriptor if relative else None)
    finally:
        os.close(descriptor)
    assert (tmp_path / "new").readlink() == Path("file")


def test_rename_exclusively_does_without_links_when_there_are_none(tmp_path):
    # No file system here lacks them, but a directory can have no second link either.
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError, match="Not a directory"):
        rename_exclusively(str(tmp_path / "old"), str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_rename_exclusively_renames_a_strangers_file_that_may_have_no_second_link():
    # fs.protected_hardlinks, on by default, forbids links to what one can neither own nor read.
    directory = Path(tempfile.mkdtemp())
    try:
        for name in ("old", "other"):
            (directory / name).touch(mode=0o600)
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
        rename_exclusively(f"{directory}/old", f"{directory}/new")
        with pytest.raises(FileExistsError):
            rename_exclusively(f"{directory}/other", f"{directory}/new")
        assert sorted(path.name for path in directory.iterdir()) == ["new", "other"]
        assert (directory / "new").stat().st_uid == 0
    finally:
        os.seteuid(0)
        shutil.rmtree(directory)


def test_rename_exclusively_counts_names_from_a_directory_when_it_has_one(tmp_path):
    (tmp_path / "old").write_text("data")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        rename_exclusively("old", "new", directory=descriptor)
    finally:
        os.close(descriptor)
    assert (tmp_path / "new").read_text() == "data"
    assert not Path("new").exists()
