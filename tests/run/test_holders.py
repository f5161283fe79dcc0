"""Which process writes to a file, by /proc and by QEMU's locks."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

import pytest

from qmpsnap.errors import ImageInUse
from qmpsnap.run.holders import Holder, locked, loops, users, writers, written
from qmpsnap.run.preflight import read_chains, refuse_unusable
from tests.each import each
from tests.headers import qcow2_bytes, with_tables


def key(path):
    status = path.stat()
    return status.st_dev, status.st_ino


@each(("mode", "writes"), [("rb", False), ("r+b", True), ("ab", True), ("xb", True)])
def test_written_tells_files_that_a_process_has_open_for_writing(tmp_path, mode, writes):
    file = tmp_path / mode
    if mode != "xb":
        file.touch()
    (tmp_path / "other").touch()
    with file.open(mode):
        assert (key(file) in written(os.getpid())) is writes
        assert written(os.getpid(), among=[key(file)]) == ({key(file)} if writes else set())
        assert written(os.getpid(), among=[key(tmp_path / "other")]) == set()
        found = writers([key(file)])
    assert {*found} == ({key(file)} if writes else set())
    for holder in found.values():
        assert (holder.pid, "py" in holder.program) == (os.getpid(), True)
    assert writers([key(file)]) == {}


def test_holders_ask_no_storage_of_a_remote_mount_where_none_of_the_files_is(tmp_path, monkeypatch):
    """That of /proc is made one: a server that is gone would not answer."""
    asked, stat = [], os.stat

    def observed(path, *arguments, **options):
        asked.append(str(path))
        return stat(path, *arguments, **options)

    file = tmp_path / "image"
    file.touch()
    with file.open("r+b") as mine, open("/proc/self/status", "rb") as far:  # noqa: PTH123 - of the kernel
        mine_is, far_is = (f"/proc/{os.getpid()}/fd/{each.fileno()}" for each in (mine, far))
        wanted, there = key(file), os.fstat(far.fileno())
        monkeypatch.setattr("qmpsnap.run.mounts._REMOTE", re.compile("proc"))
        monkeypatch.setattr("os.stat", observed)
        for find in (writers, users):
            asked.clear()
            assert {*find([wanted])} == {wanted}
            assert (mine_is in asked, far_is in asked) == (True, False)
        assert {*users([(there.st_dev, there.st_ino)])} == {(there.st_dev, there.st_ino)}


def test_loops_tells_files_that_a_loop_device_writes_to(tmp_path):
    for number, (name, read_only) in enumerate([("\u00e4 b", "0"), ("c", "1"), ("gone", "0")]):
        device = tmp_path / "block" / f"loop{number}"
        (device / "loop").mkdir(parents=True)
        (device / "loop" / "backing_file").write_text(f"{tmp_path}/{name}\n")
        (device / "ro").write_text(f"{read_only}\n")
    (tmp_path / "block" / "loop7").mkdir()  # not in use
    (tmp_path / "block" / "sda").mkdir()
    files = {name: tmp_path / name for name in ("\u00e4 b", "c", "other")}
    for file in files.values():
        file.touch()
    keys = [key(file) for file in files.values()]
    assert loops(keys, str(tmp_path / "block")) == {keys[0]: Holder(None, "/dev/loop0")}
    assert loops(keys, str(tmp_path / "none")) == {}
    assert str(Holder(None, "/dev/loop0")) == "the loop device /dev/loop0"


def test_loops_ask_no_storage_of_a_remote_mount_where_none_of_the_files_is(tmp_path, monkeypatch):
    """That of /proc is made one: a server that is gone would not answer."""
    asked, stat = [], os.stat

    def observed(path, *arguments, **options):
        asked.append(str(path))
        return stat(path, *arguments, **options)

    (device := tmp_path / "loop0" / "loop").mkdir(parents=True)
    far = f"/proc/{os.getpid()}/status"
    (device / "backing_file").write_text(f"{far}\n")
    (tmp_path / "loop0" / "ro").write_text("0\n")
    (file := tmp_path / "image").touch()
    near, there = key(file), key(Path(far))
    monkeypatch.setattr("qmpsnap.run.mounts._REMOTE", re.compile("proc"))
    monkeypatch.setattr("os.stat", observed)
    assert (loops([near], str(tmp_path)), far in asked) == ({}, False)
    assert loops([near, there], str(tmp_path)) == {there: Holder(None, "/dev/loop0")}


def lock(descriptor, byte):
    """Take QEMU's lock on that byte, which is shared."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_RDLCK, 0, byte, 1, 0))


@each(
    ("byte", "writes"),
    [(100, False), (101, True), (102, False), (103, True), (201, False)],  # read, write, unchanged, resize
)
def test_locked_tells_the_lock_of_a_process_that_may_write(tmp_path, byte, writes):
    file = tmp_path / "image"
    file.touch()
    with file.open("rb") as held, file.open("rb") as mine:
        lock(held.fileno(), byte)
        assert locked(mine.fileno()) is writes
        held.close()
        assert not locked(mine.fileno())


def test_an_image_is_in_use_even_if_only_its_lock_is_seen(tmp_path):
    file = tmp_path / "disk.qcow2"
    file.write_bytes(with_tables(qcow2_bytes()))
    chains = read_chains({"vda": str(file)})
    with file.open("rb") as held:
        lock(held.fileno(), 101)
        with pytest.raises(ImageInUse, match="in use: another process has it open for writing") as caught:
            refuse_unusable(chains)
    error = caught.value
    assert (error.file, error.pid, error.program, error.user) == (str(file), None, "", "")
    refuse_unusable(chains)
