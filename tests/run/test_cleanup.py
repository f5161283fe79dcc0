import fcntl
import os
import struct

import pytest

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.plan.commands.files import Proof
from qmpsnap.run import cleanup
from qmpsnap.run.cleanup import Created, NotTheLayer
from qmpsnap.run.images import Images
from tests.headers import qcow2_bytes


@pytest.fixture
def place(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "base").write_bytes(b"raw data")
    return tmp_path / "d"


def names(place):
    return sorted(path.name for path in place.iterdir())


async def test_remove_created_removes_the_file_that_we_made(place):
    images = Images()
    created = await images.create_image(f"{place}/new", size_bytes=512, format="raw", like=None)
    assert await images.remove_created(created)
    assert not await images.remove_created(created)
    assert names(place) == ["base"]


async def test_remove_created_keeps_a_file_that_took_the_name(place):
    images = Images()
    created = await images.create_image(f"{place}/new", size_bytes=512, format="raw", like=None)
    (place / "new").rename(place / "moved")
    (place / "new").write_text("precious")
    assert not await images.remove_created(created)
    assert names(place) == ["base", "moved", "new"]


@pytest.mark.parametrize(
    ("policy", "left"), [("rename", ["base", "s1.invalid"]), ("remove", ["base"]), ("keep", ["base", "s1"])]
)
async def test_retire_does_what_was_asked_and_no_more_when_asked_again(place, policy, left):
    (place / "s1").write_text("data")
    for _ in range(2):
        await Images().retire(f"{place}/s1", policy, f"{place}/s1.invalid")
        assert names(place) == left


async def test_retire_never_replaces_a_file(place):
    (place / "s1").write_text("data")
    (place / "s1.invalid").write_text("precious")
    with pytest.raises(TargetExists, match="keeps its name"):
        await Images().retire(f"{place}/s1", "rename", f"{place}/s1.invalid")
    assert (place / "s1.invalid").read_text() == "precious"
    assert names(place) == ["base", "s1", "s1.invalid"]


async def test_retire_finishes_a_renaming_that_was_cut_in_half(place):
    (place / "s1").write_text("data")
    (place / "s1.invalid").hardlink_to(place / "s1")
    await Images().retire(f"{place}/s1", "rename", f"{place}/s1.invalid")
    assert names(place) == ["base", "s1.invalid"]


async def test_retire_says_why_when_it_cannot(place):
    (place / "s1").mkdir()
    with pytest.raises(InvalidTarget, match="cannot remove"):
        await Images().retire(f"{place}/s1", "remove")


def with_table(place, entry=0, **fields):
    """An overlay as long as a real one, whose table of data lies in its fourth cluster."""
    return qcow2_bytes(**({"backing": f"{place}/base"} | fields)).ljust(3 << 16, b"\0") + entry.to_bytes(
        16, "big"
    )


@pytest.mark.parametrize(
    ("fields", "fresh"),
    [
        ({}, True),
        ({"backing": "base"}, True),
        ({"backing": "link"}, True),
        ({"backing": None}, True),
        ({"backing": "/d/other"}, False),
        ({"entry": 1 << 63 | 5 << 16}, False),
        ({"snapshots": 1}, False),
        ({"bitmaps": 1}, False),
        ({"data_file": "x"}, False),
    ],
)
def test_fresh_tells_one_that_never_got_any_data(place, fields, fresh):
    (place / "link").symlink_to("base")
    (place / "new").write_bytes(with_table(place, **fields))
    assert (cleanup.fresh(f"{place}/new", f"{place}/base") is not None) is fresh


@pytest.mark.parametrize(
    ("data", "fresh"), [(b"", True), (b"precious", False), (b"QFI\xfb", False), (qcow2_bytes(), False)]
)
def test_fresh_takes_nothing_for_one_but_an_empty_file(place, data, fresh):
    (place / "new").write_bytes(data)
    assert (cleanup.fresh(f"{place}/new", f"{place}/base") is not None) is fresh


@pytest.mark.parametrize("parts", range(4))
def test_fresh_tells_an_overlay_whose_maker_was_killed_anywhere(place, parts):
    empty = empty_qcow2(virtual_size=1 << 30, backing=f"{place}/base", backing_format="raw")
    with (place / "new").open("wb") as file:
        file.truncate(empty.size_bytes)
        for offset, data in empty.parts[:parts]:
            os.pwrite(file.fileno(), data, offset)
    assert len(empty.parts) == 3
    assert cleanup.fresh(f"{place}/new", f"{place}/base") is not None


def test_fresh_follows_no_symlink_and_opens_no_fifo(place):
    (place / "empty").touch()
    (place / "link").symlink_to("empty")
    os.mkfifo(place / "fifo")
    for name in ("link", "fifo", "missing", "."):
        assert cleanup.fresh(f"{place}/{name}", f"{place}/base") is None


async def test_remove_orphan_removes_an_overlay_that_never_got_any_data(place):
    (place / "new").write_bytes(with_table(place))
    assert await Images().remove_orphan(f"{place}/new", f"{place}/base")
    assert not await Images().remove_orphan(f"{place}/new", f"{place}/base")
    assert names(place) == ["base"]


async def test_remove_orphan_keeps_an_overlay_that_somebody_has_open(place):
    file = place / "new"
    file.write_bytes(with_table(place))
    for flags, lock in ((os.O_RDONLY, False), (os.O_RDWR, False), (os.O_RDWR, True)):
        descriptor = os.open(file, flags)
        if lock:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, 0, 201, 1, 0))
        with pytest.raises(InvalidTarget, match=rf"stays: process {os.getpid()} \(.*\) has it open"):
            await Images().remove_orphan(str(file), f"{place}/base")
        os.close(descriptor)
    assert names(place) == ["base", "new"]
    assert await Images().remove_orphan(str(file), f"{place}/base")


async def test_remove_orphan_keeps_an_overlay_with_data(place):
    (place / "new").write_bytes(with_table(place, entry=1))
    with pytest.raises(InvalidTarget, match="it stays"):
        await Images().remove_orphan(f"{place}/new", f"{place}/base")
    assert names(place) == ["base", "new"]


async def test_remove_orphan_removes_nothing_but_an_empty_file_when_there_is_no_backing_file(place):
    (place / "empty").touch()
    (place / "new").write_bytes(with_table(place, backing=None))
    assert await Images().remove_orphan(f"{place}/empty", None)
    with pytest.raises(InvalidTarget, match="it stays"):
        await Images().remove_orphan(f"{place}/new", None)
    assert names(place) == ["base", "new"]


async def test_remove_orphan_removes_no_symlink(place):
    (place / "empty").touch()
    (place / "link").symlink_to("empty")
    with pytest.raises(InvalidTarget, match="it stays"):
        await Images().remove_orphan(f"{place}/link", None)
    assert names(place) == ["base", "empty", "link"]


async def test_as_created_takes_a_regular_file_and_nothing_else(place):
    (place / "link").symlink_to("base")
    status = (place / "base").stat()
    assert await Images().as_created(f"{place}/base") == Created(
        f"{place}/base", status.st_dev, status.st_ino
    )
    for name in ("link", "missing", "."):
        assert await Images().as_created(f"{place}/{name}") is None


def overlay(place, name="s1", backing=None):
    file = place / name
    file.write_bytes(qcow2_bytes(backing=f"{place}/base" if backing is None else backing))
    status = file.stat()
    return f"{file}", Proof("qcow2", f"{place}/base", status.st_dev, status.st_ino)


@pytest.mark.parametrize(("policy", "left"), [("rename", ["base", "s1.invalid"]), ("remove", ["base"])])
@pytest.mark.parametrize("backing", [None, "base", "./base"])
async def test_retire_renames_the_layer_that_its_header_shows(place, policy, left, backing):
    file, proof = overlay(place, backing=backing)
    for known in (proof, proof, Proof("", proof.backing)):
        await Images().retire(file, policy, f"{file}.invalid", known)
        assert names(place) == left


@pytest.mark.parametrize("policy", ["rename", "remove"])
@pytest.mark.parametrize(
    ("victim", "says"),
    [
        ("raw", "by its header it is not an overlay"),
        ("alone", "by its header it is not an overlay"),
        ("other", "names '/images/other' as its backing file"),
        ("exchanged", "another file has its name by now"),
        ("fifo", "it is a FIFO"),
        ("format", "by its header it is not an overlay"),
    ],
)
async def test_retire_does_not_touch_what_is_not_that_layer(place, policy, victim, says):
    file, proof = overlay(place)
    match victim:
        case "raw":
            (place / "s1").write_bytes(b"precious")
        case "alone":
            (place / "s1").write_bytes(qcow2_bytes())
        case "other":
            (place / "s1").write_bytes(qcow2_bytes(backing="/images/other"))
        case "exchanged":
            overlay(place, "new")
            (place / "new").rename(file)
        case "fifo":
            (place / "s1").unlink()
            os.mkfifo(file)
        case "format":
            proof = Proof("vmdk", proof.backing)
    if victim not in {"exchanged", "fifo"}:
        proof = Proof(proof.format, proof.backing)
    with pytest.raises(InvalidTarget, match=says) as caught:
        await Images().retire(file, policy, f"{file}.invalid", proof)
    assert isinstance(caught.value.__cause__, NotTheLayer)
    assert names(place) == ["base", "s1"]


async def test_retire_knows_a_layer_whose_backing_file_has_lost_its_name_already(place):
    file, proof = overlay(place)
    (place / "base").rename(place / "base.invalid")
    await Images().retire(file, "rename", f"{file}.invalid", proof)
    assert names(place) == ["base.invalid", "s1.invalid"]


async def test_retire_leaves_a_symlink_its_name(place):
    _, proof = overlay(place, "real")
    (place / "s1").symlink_to("real")
    await Images().retire(f"{place}/s1", "remove", "", proof)
    assert names(place) == ["base", "real", "s1"]
