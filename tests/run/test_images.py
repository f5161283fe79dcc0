import asyncio
import contextlib
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from qmpsnap.errors import Refused, TargetExists, TargetUnusable, Unsupported
from qmpsnap.model.files import Ask, Files
from qmpsnap.run import survey
from qmpsnap.run.images import Images
from qmpsnap.testing.headers import qcow2_bytes

SIZE = 1 << 30


@pytest.fixture
def place(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "base").write_bytes(b"raw data")
    return tmp_path / "d"


@pytest.fixture
def fake(tmp_path):
    """Make a stand-in for qemu-img that runs a line of shell; $out is the file that it was given."""

    def make(line="cat $0.header > $out", header=b""):
        program = tmp_path / "qemu-img"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > $0.arguments\nout=/proc/self/fd/0\n{line}\n')
        program.chmod(0o755)
        Path(f"{program}.header").write_bytes(header)
        return Images(str(program))

    return make


def overlay(images, place, name="new", **changes):
    arguments = {
        "size_bytes": SIZE,
        "backing": f"{place}/base",
        "backing_format": "raw",
        "like": None,
    } | changes
    return images.create_overlay(f"{place}/{name}", **arguments)


def good(place, **fields):
    wanted: dict[str, Any] = {"backing": f"{place}/base", "backing_format": "raw", "virtual_size": SIZE}
    return qcow2_bytes(**(wanted | fields))


def names(place):
    return sorted(path.name for path in place.iterdir())


async def test_create_overlay_asks_qemu_img_for_an_image_that_it_need_not_probe(place, fake, tmp_path):
    created = await overlay(fake(header=good(place)), place)
    said = (tmp_path / "qemu-img.arguments").read_text().split("\n")[:-1]
    assert said == [
        *["create", "-q", "-u", "-f", "qcow2", "-b", f"{place}/base", "-F", "raw"],
        *["/proc/self/fd/0", str(SIZE)],
    ]
    assert (place / "new").read_bytes() == good(place)
    status = (place / "new").stat()
    assert (created.file, created.device, created.inode) == (f"{place}/new", status.st_dev, status.st_ino)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o4777])
async def test_create_overlay_takes_the_mode_of_the_layer_that_it_covers(place, fake, mode):
    (place / "base").chmod(mode)
    await overlay(fake(header=good(place)), place, like=f"{place}/base")
    assert stat.S_IMODE((place / "new").stat().st_mode) == mode & 0o777


async def test_create_overlay_is_ours_alone_when_it_covers_nothing_that_we_see(place, fake):
    await overlay(fake(header=good(place)), place)
    assert stat.S_IMODE((place / "new").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_create_overlay_takes_owner_and_group_of_the_layer_that_it_covers(place, fake):
    os.chown(place / "base", 12345, 54321)
    await overlay(fake(header=good(place)), place, like=f"{place}/base")
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
        with pytest.raises(TargetUnusable, match=r"cannot be given owner 0:0 .* of '/etc/passwd'"):
            await Images().create_image(f"{place}/new", size_bytes=SIZE, format="raw", like="/etc/passwd")
        assert names(place) == []


async def test_create_image_is_refused_when_the_directory_is_not_ours_to_write():
    with as_somebody() as place:
        (place / "closed").mkdir(mode=0o555)
        with pytest.raises(TargetUnusable, match="is not writable for us"):
            await Images().create_image(f"{place}/closed/new", size_bytes=SIZE, format="raw", like=None)


@pytest.mark.parametrize("make", ["write_bytes", "symlink_to", "mkdir"])
async def test_create_overlay_never_touches_what_is_there(place, fake, make):
    arguments = {"write_bytes": [b"precious"], "symlink_to": [place / "victim"], "mkdir": []}[make]
    getattr(place / "new", make)(*arguments)
    with pytest.raises(TargetExists, match="exists already") as caught:
        await overlay(fake(header=good(place)), place)
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
        ({"format": "raw"}, "raw images have no backing file"),
        ({"like": "/no/such/file"}, "the owner of '/no/such/file' cannot be read"),
    ],
)
async def test_create_overlay_says_why_when_it_cannot_be(place, fake, changes, why):
    with pytest.raises(TargetUnusable, match=why):
        await overlay(fake(header=good(place)), place, **changes)
    assert names(place) == ["base"]


async def test_create_overlay_takes_a_backing_name_of_1023_bytes(place, fake):
    backing = "/" + "ü" * 511
    await overlay(fake(header=good(place, backing=backing)), place, backing=backing)
    assert names(place) == ["base", "new"]


async def test_create_overlay_says_what_qemu_img_says_when_it_fails(place, fake):
    images = fake("echo half > $out; echo 'qemu-img: /proc/self/fd/0: No space left on device' >&2; exit 1")
    with pytest.raises(TargetUnusable, match=r"cannot make '.*/d/new': No space left on device$"):
        await overlay(images, place)
    assert names(place) == ["base"]


@pytest.mark.parametrize(
    "fields",
    [
        {"backing": "/d/other"},
        {"backing": None},
        {"backing_format": "qcow2"},
        {"backing_format": None},
        {"virtual_size": SIZE - 512},
        {"bitmaps": 1, "backing": None},
    ],
)
async def test_create_overlay_is_refused_when_the_header_is_not_what_was_asked(place, fake, fields):
    with pytest.raises(TargetUnusable, match="its header"):
        await overlay(fake(header=good(place, **fields)), place)
    assert names(place) == ["base"]


async def test_create_overlay_is_refused_when_qemu_img_writes_nothing(place, fake):
    with pytest.raises(TargetUnusable, match="its header does not say"):
        await overlay(fake("true"), place)
    assert names(place) == ["base"]


async def test_create_overlay_says_what_to_install_when_there_is_no_qemu_img(place):
    with pytest.raises(Unsupported, match="No such file") as caught:
        await overlay(Images("/no/qemu-img"), place)
    assert (caught.value.feature, "qemu-utils" in caught.value.hint) == ("qemu-img", True)
    assert names(place) == ["base"]


async def test_create_overlay_leaves_nothing_when_it_is_cancelled(place, fake, tmp_path):
    os.mkfifo(tmp_path / "began")
    task = asyncio.create_task(
        overlay(fake("echo > ${0%/*}/began; cat $0.header > $out", good(place)), place)
    )
    await asyncio.to_thread((tmp_path / "began").read_bytes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(place) == ["base"]


async def test_create_overlay_removes_no_file_but_its_own_when_it_fails(place, fake):
    images = fake(f"mv {place}/new {place}/moved; echo precious > {place}/new; exit 1")
    with pytest.raises(TargetUnusable):
        await overlay(images, place)
    assert (place / "new").read_text() == "precious\n"


async def test_create_overlay_writes_its_own_file_when_another_takes_the_name(place, fake):
    images = fake(
        f"mv {place}/new {place}/moved; echo precious > {place}/new; cat $0.header > $out", good(place)
    )
    await overlay(images, place)
    assert (place / "new").read_text() == "precious\n"


async def test_create_image_makes_a_raw_one_without_qemu_img(place):
    await Images("/no/qemu-img").create_image(f"{place}/new", size_bytes=SIZE, format="raw", like=None)
    status = (place / "new").stat()
    assert (status.st_size, status.st_blocks) == (SIZE, 0)


async def test_create_image_makes_none_of_a_format_that_is_not_ours(place):
    with pytest.raises(Unsupported, match="'vmdk'"):
        await Images().create_image(f"{place}/new", size_bytes=SIZE, format="vmdk", like=None)
    assert names(place) == ["base"]


async def test_create_image_leaves_no_descriptor(place, fake):
    before = len(list(Path("/proc/self/fd").iterdir()))
    await overlay(fake(header=good(place)), place)
    with pytest.raises(Refused):
        await overlay(fake("exit 1"), place, "other")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_look_looks_at_nothing_when_the_file_system_is_not_shared(place):
    assert await Images().look(Ask(files=(f"{place}/base",)), shared=False) == Files(shared=False)


async def test_look_works_in_a_thread(place, monkeypatch):
    threads = []
    look = survey.look

    def noted(ask):
        threads.append(threading.current_thread())
        return look(ask)

    monkeypatch.setattr(survey, "look", noted)
    found = await Images().look(Ask(files=(f"{place}/base",)), shared=True)
    assert found.files[f"{place}/base"].kind == "regular"
    assert threading.main_thread() not in threads
    assert len(threads) == 1


async def test_look_tells_once_of_a_record_that_it_leaves_unread(place, caplog):
    (place / "intent-half.json").write_text("{")
    images = Images()
    for _ in range(2):
        await images.look(Ask(records=(str(place),)), shared=True)
    (told,) = [one for one in caplog.records if "left_unread" in one.getMessage()]
    assert told.levelname == "WARNING"
