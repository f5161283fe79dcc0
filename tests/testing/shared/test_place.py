"""The private directory of a shared machine, and the images that nobody may write to."""

from __future__ import annotations

import fcntl
import os
import struct

import pytest

from qmpsnap.errors import NotFound, UnsafeImage
from qmpsnap.model.header import parse_header
from qmpsnap.testing.shared.place import overlay_each, private_directory, read_bases, unwritable
from tests.each import each
from tests.headers import qcow2_bytes

FLOCK = struct.Struct("@hhqqi4x")


def test_private_directory_is_ours_alone_and_goes_with_the_block():
    with private_directory() as path:
        assert path.stat().st_mode & 0o777 == 0o700
        assert len(str(path)) < 60
        (path / "a").mkdir()
        (path / "a" / "b").touch()
    assert not path.exists()


def may_write(file):
    """Whether QEMU would get its locks for it: it looks at who does not share the permission to write."""
    with file.open("r+b") as opened:
        for byte in (201, 203):
            asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
            if FLOCK.unpack(fcntl.fcntl(opened, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                return False
    return True


def test_unwritable_images_can_be_written_to_after_the_block(tmp_path):
    images = [tmp_path / "a", tmp_path / "b"]
    for image in images:
        image.write_bytes(b"data")
    with unwritable([*map(str, images), str(tmp_path / "missing")]):
        assert [may_write(image) for image in images] == [False, False]
    assert [may_write(image) for image in images] == [True, True]


async def test_image_that_is_not_found_is_refused_with_where_its_path_counts_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound) as caught:
        await read_bases({"vda": "base.qcow2"}, {"vda": "qcow2"})
    assert caught.value.hint == f"a relative path counts from {str(tmp_path)!r}, where pytest was started"
    with pytest.raises(NotFound) as caught:
        await read_bases({"vda": "base.qcow2"}, {"vda": "qcow2"}, cwd="/suite")
    assert caught.value.hint == "a relative path counts from '/suite', where pytest was started"
    with pytest.raises(NotFound) as caught:
        await read_bases({"vda": str(tmp_path / "base.qcow2")}, {"vda": "qcow2"})
    assert caught.value.hint == ""


@each(
    ("form", "hint"),
    [
        ("qcow2", 'if it is a raw image: give "vda": (PATH, "raw")'),
        (None, 'if it is raw: give "vda": (PATH, "raw")'),
    ],
)
async def test_image_of_another_format_is_refused_in_the_words_of_qmpsnap_disks(tmp_path, form, hint):
    (tmp_path / "data").write_bytes(bytes(1 << 16))
    with pytest.raises(UnsafeImage) as caught:
        await read_bases({"vda": str(tmp_path / "data")}, {"vda": form} if form else {})
    assert caught.value.hint == hint


async def test_overlays_are_based_on_the_images(tmp_path):
    base, raw, place = tmp_path / "base.qcow2", tmp_path / "data", tmp_path / "overlays"
    base.write_bytes(qcow2_bytes(virtual_size=1 << 20))
    raw.write_bytes(bytes(1 << 16))
    place.mkdir()
    bases = await read_bases({"vda": str(base), "vdb": str(raw)}, {"vdb": "raw"})
    made = await overlay_each(bases, place)
    assert made == {"vda": str(place / "vda.qcow2"), "vdb": str(place / "vdb.qcow2")}
    found = {}
    for disk, file in made.items():
        header = parse_header((place / file).read_bytes()[: 1 << 16])
        assert header is not None
        found[disk] = (header.backing, header.backing_format, header.virtual_size)
    assert found == {"vda": (str(base), "qcow2", 1 << 20), "vdb": (str(raw), "raw", 1 << 16)}


async def test_missing_image_is_refused(tmp_path):
    with pytest.raises(NotFound):
        await read_bases({"vda": str(tmp_path / "none.qcow2")}, {})
