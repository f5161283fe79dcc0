import asyncio
import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, Refused, TargetExists, Unsupported
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.header import Header, parse_header
from qmpsnap.plan.commands.files import LuksHeader
from qmpsnap.run.images import Images

SIZE = 1 << 30


@pytest.fixture
def place(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "base").write_bytes(b"raw data")
    return tmp_path / "d"


def overlay(place, name="new", **changes):
    arguments: dict[str, Any] = {
        "size_bytes": SIZE,
        "backing": f"{place}/base",
        "backing_format": "raw",
        "like": None,
    } | changes
    return Images().create_image(f"{place}/{name}", format="qcow2", **arguments)


def names(place):
    return sorted(path.name for path in place.iterdir())


async def test_create_image_makes_an_empty_one_and_says_which_file_it_is(place):
    created = await overlay(place)
    header = parse_header((place / "new").read_bytes())
    assert header is not None
    assert re.fullmatch(r"[0-9a-f]{32}", header.mark)
    assert replace(header, mark="") == Header(
        format="qcow2",
        virtual_size=SIZE,
        backing=f"{place}/base",
        backing_format="raw",
        l1_offset=3 * 65536,
        l1_entries=2,
    )
    status = (place / "new").stat()
    assert (created.file, created.device, created.inode) == (f"{place}/new", status.st_dev, status.st_ino)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o4777])
async def test_create_image_takes_the_mode_of_the_layer_that_it_covers(place, mode):
    (place / "base").chmod(mode)
    await overlay(place, like=f"{place}/base")
    assert stat.S_IMODE((place / "new").stat().st_mode) == mode & 0o777


async def test_create_image_is_ours_alone_when_it_covers_nothing_that_we_see(place):
    await overlay(place)
    assert stat.S_IMODE((place / "new").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_create_image_takes_owner_and_group_of_the_layer_that_it_covers(place):
    os.chown(place / "base", 12345, 54321)
    await overlay(place, like=f"{place}/base")
    status = (place / "new").stat()
    assert (status.st_uid, status.st_gid) == (12345, 54321)


@contextlib.contextmanager
def as_somebody():
    """Run as a user without privileges, in a directory of its own."""
    directory = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        if root:
            os.chown(directory, 65534, 65534)
            os.seteuid(65534)
        yield directory
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(directory)


async def test_create_image_is_refused_when_the_owner_may_not_be_given():
    with as_somebody() as place:
        with pytest.raises(InvalidTarget, match=r"cannot give it owner 0:0 .* of '/etc/passwd'"):
            await Images().create_image(f"{place}/new", size_bytes=SIZE, format="raw", like="/etc/passwd")
        assert names(place) == []


async def test_create_image_is_refused_when_the_directory_is_not_ours_to_write():
    with as_somebody() as place:
        (place / "closed").mkdir(mode=0o555)
        with pytest.raises(InvalidTarget, match="is not writable for qmpsnap"):
            await Images().create_image(f"{place}/closed/new", size_bytes=SIZE, format="raw", like=None)


@pytest.mark.parametrize("make", ["write_bytes", "symlink_to", "mkdir"])
async def test_create_image_never_touches_what_is_there(place, make):
    arguments = {"write_bytes": [b"precious"], "symlink_to": [place / "victim"], "mkdir": []}[make]
    getattr(place / "new", make)(*arguments)
    with pytest.raises(TargetExists, match="exists already") as caught:
        await overlay(place)
    assert caught.value.file == f"{place}/new"
    assert names(place) == ["base", "new"]
    assert not (place / "new").is_file() or (place / "new").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "no/new"}, "there is no directory '.*/no'"),
        ({"name": "base/new"}, "there is no directory '.*/base'"),
        ({"name": "x" * 300}, "too long for the file system"),
        ({"name": "a\0b"}, "null"),
        ({"backing": "base"}, "must be absolute"),
        ({"backing": "/\ud800"}, "surrogates not allowed"),
        ({"backing": "/a\0b"}, "null"),
        ({"backing": "/" + "ü" * 512}, "longer than 1023 bytes"),
        ({"backing_format": None}, "belong together"),
        ({"size_bytes": 1 << 62}, "clusters of 65536 bytes cannot have"),
        ({"like": "/no/such/file"}, "the owner of '/no/such/file' cannot be read"),
    ],
)
async def test_create_image_says_why_when_it_cannot_be(place, changes, why):
    with pytest.raises(InvalidTarget, match=why):
        await overlay(place, **changes)
    assert names(place) == ["base"]


async def test_create_image_takes_a_backing_name_of_1023_bytes(place):
    backing = "/" + "ü" * 511
    await overlay(place, backing=backing)
    assert names(place) == ["base", "new"]


@pytest.mark.parametrize(
    "fields",
    [
        {"backing": "/d/other"},
        {"backing": None, "backing_format": None},
        {"backing_format": "qcow2"},
        {"backing_format": None},
        {"virtual_size": SIZE - 512},
    ],
)
async def test_create_image_is_refused_when_the_header_is_not_what_was_asked(place, fields, monkeypatch):
    asked = {"backing": f"{place}/base", "backing_format": "raw", "virtual_size": SIZE}
    other = empty_qcow2(**(asked | fields))
    monkeypatch.setattr("qmpsnap.run.images.empty_qcow2", lambda **_: other)
    with pytest.raises(InvalidTarget, match="its header"):
        await overlay(place)
    assert names(place) == ["base"]


async def test_create_image_leaves_nothing_when_it_cannot_be_written(place, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(InvalidTarget, match=r"cannot create '.*/d/new': no space left on the file system"):
        await overlay(place)
    assert names(place) == ["base"]


async def test_create_image_leaves_nothing_when_half_of_it_is_written(place, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[: len(data) // 2], at))
    with pytest.raises(InvalidTarget, match="no space left on the file system"):
        await overlay(place)
    assert names(place) == ["base"]


async def test_create_image_leaves_nothing_when_it_is_cancelled(place, monkeypatch):
    began, goes_on, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor):
        began.set()
        goes_on.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    task = asyncio.create_task(overlay(place))
    await asyncio.to_thread(began.wait)
    task.cancel()
    goes_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(place) == ["base"]


@pytest.mark.parametrize("fails", [False, True])
async def test_create_image_touches_no_file_that_takes_the_name_meanwhile(place, fails, monkeypatch):
    fsync = os.fsync

    def swap(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        (place / "new").rename(place / "moved")
        (place / "new").write_text("precious")
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", swap)
    with pytest.raises(InvalidTarget) if fails else contextlib.nullcontext():
        await overlay(place)
    assert (place / "new").read_text() == "precious"


async def test_create_image_makes_a_raw_one(place):
    await Images().create_image(f"{place}/new", size_bytes=SIZE, format="raw", like=None)
    status = (place / "new").stat()
    assert (status.st_size, status.st_blocks) == (SIZE, 0)


async def test_create_image_makes_none_of_a_format_that_is_not_ours(place):
    with pytest.raises(Unsupported, match="'vmdk'"):
        await Images().create_image(f"{place}/new", size_bytes=SIZE, format="vmdk", like=None)
    assert names(place) == ["base"]


async def test_create_image_leaves_no_descriptor(place):
    before = len(list(Path("/proc/self/fd").iterdir()))
    await overlay(place)
    with pytest.raises(Refused):
        await overlay(place, "other", size_bytes=1 << 62)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_create_image_copies_a_luks_header_of_the_very_file_that_was_seen(place):
    luks = b"LUKS\xba\xbe\x00\x01".ljust(104, b"\0") + (2).to_bytes(4, "big") + bytes(range(256)) * 4
    secret = place / "secret"
    secret.write_bytes(luks[:1024] + b"data")
    status = secret.stat()
    await overlay(place, luks=LuksHeader(str(secret), status.st_dev, status.st_ino))
    header = parse_header((place / "new").read_bytes())
    assert header is not None
    assert header.luks is not None
    offset, length = header.luks
    assert (place / "new").read_bytes()[offset : offset + length] == luks[:1024]
    for name, inode, why in (
        (secret, status.st_ino + 1, "another file is called"),
        (place / "base", (place / "base").stat().st_ino, "has no luks header"),
    ):
        with pytest.raises(InvalidTarget, match=why):
            await overlay(place, name="other", luks=LuksHeader(str(name), status.st_dev, inode))
    secret.write_bytes(luks[:512])
    with pytest.raises(InvalidTarget, match="truncated"):
        await overlay(place, name="other", luks=LuksHeader(str(secret), status.st_dev, status.st_ino))
    assert not (place / "other").exists()
