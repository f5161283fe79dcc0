"""Images that somebody else has made: what their headers name is refused before any tool opens them.

A canary is a file outside, whose opening the kernel would report; a tripwire is a storage daemon that first
says that it was started. What is refused is tabled in tests/run/test_preflight.py.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import qmpsnap
from integration.cli import ROOT
from integration.known_images import MIB
from integration.machines import blockdev
from integration.off import offline
from qmpsnap.errors import Changed, FileMoved, ImageInUse, Refused, StillNeeded, UnsafeImage, Unsupported

_OPENED = 0x20  # IN_OPEN, of inotify(7)


@contextmanager
def untouched(*files):
    """Nobody opens any of the files while the block lasts."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    try:
        for file in files:
            assert libc.inotify_add_watch(watch, os.fsencode(file), _OPENED) >= 0
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


def test_untouched_sees_that_a_file_is_opened(tmp_path):
    file = tmp_path / "canary"
    file.touch()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), untouched(file):
        file.read_bytes()


class Tripwire:
    """A storage daemon that notes its start, and may do something right before."""

    def __init__(self, qemu, folder, first=""):
        self.mark = folder / "started"
        self.program = folder / "qemu-storage-daemon"
        real = shlex.quote(str(qemu.directory / "qemu-storage-daemon"))
        self.program.write_text(f'#!/bin/sh\n: > {self.mark}\n{first}\nexec {real} "$@"\n')
        self.program.chmod(0o755)

    @property
    def started(self):
        return self.mark.exists()

    def offline(self, images, **options):
        return qmpsnap.offline(images, daemon=self.program, **options)


@pytest.fixture
def place(tmp_path):
    """A directory of a machine's images, and one beside it with a canary."""
    for name in ("vm1", "other", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "canary").write_bytes(bytes(MIB))
    return tmp_path / "vm1"


def with_data_file(qemu, place, name):
    """An image whose header names that data file."""
    made = place / "data.qcow2"
    qemu.create(made, options=f"data_file={place}/d.raw")
    header = made.read_bytes()
    old = f"{place}/d.raw".encode()
    new = name.encode()
    at = header.index(old)
    assert header[at - 8 : at] == struct.pack(">II", 0x44415441, len(old))
    room = len(old) + 7 & ~7
    assert len(new) <= room, "the extension is changed in its place"
    header = bytearray(header)
    header[at - 4 : at] = struct.pack(">I", len(new))
    header[at : at + room] = new.ljust(room, b"\0")
    made.write_bytes(header)
    return made


def named(name, backing_format="raw"):
    def make(qemu, place):
        file = name.format(there=place.parent / "other")
        return qemu.create(place / "top.qcow2", backing=file, backing_format=backing_format)

    return make


def through_a_link(qemu, place):
    (place / "base.raw").symlink_to("../other/canary")
    return qemu.create(place / "top.qcow2", backing="base.raw", backing_format="raw")


def data_file_outside(qemu, place):
    return with_data_file(qemu, place, "../other/canary")


def data_file_as_json(qemu, place):
    return with_data_file(qemu, place, 'json:{"driver":"nbd"}')


def a_loop(qemu, place):
    qemu.create(place / "a.qcow2", backing="b.qcow2")
    return qemu.create(place / "b.qcow2", backing="a.qcow2")


def a_raw_disk_with_a_header(qemu, place):
    made = named("{there}/canary")(qemu, place)
    return shutil.move(made, place / "disk.img")


CASES = {
    "json": (
        named('json:{{"driver":"raw","file":{{"driver":"file","filename":"{there}/canary"}}}}'),
        "plain",
    ),
    "nbd": (named("nbd:unix:{there}/canary"), "not a plain file name"),
    "file": (named("file:{there}/canary"), "outside the directory"),
    "absolute": (named("{there}/canary"), "outside the directory"),
    "relative": (named("../other/canary"), "outside the directory"),
    "link": (through_a_link, "a symbolic link to .*canary', outside"),
    "data-file": (data_file_outside, "not an absolute path"),
    "data-json": (data_file_as_json, "not an absolute path"),
    "loop": (a_loop, "is a loop"),
    "raw": (a_raw_disk_with_a_header, "may have been written by a guest"),
}


@pytest.mark.parametrize("read_only", [True, False], ids=["chain", "change"])
async def test_hostile_images_are_refused_before_anything_is_opened(qemu, tmp_path, place, read_only):
    shutil.rmtree(place)
    wire = Tripwire(qemu, tmp_path / "bin")
    for name, (make, text) in CASES.items():
        home = tmp_path / name / "vm1"
        home.mkdir(parents=True)
        shutil.copytree(tmp_path / "other", home.parent / "other")
        top = make(qemu, home)
        with untouched(home.parent / "other" / "canary"):
            with pytest.raises(UnsafeImage, match=text) as caught:
                async with wire.offline({"vda": top}, read_only=read_only) as vm:
                    await vm.graph()
            assert caught.value.changed is Changed.NO, name
    assert not wire.started


CLIENT = """
import asyncio, sys, qmpsnap

async def main():
    async with qmpsnap.offline(vda=sys.argv[1]) as vm:
        await vm.snapshot("n1")

try:
    asyncio.run(main())
except qmpsnap.UnsafeImage as error:
    sys.exit(str(error))
"""


def test_no_tool_is_started_on_a_hostile_image(qemu, tmp_path, place):
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    top = named("{there}/canary")(qemu, place)
    log = tmp_path / "strace"
    traced = ["strace", "-f", "-e", "trace=execve,open,openat,openat2", "-o", log]
    done = subprocess.run(
        [*traced, sys.executable, "-c", CLIENT, top],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{qemu.directory}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
    )
    assert "outside the directory" in done.stderr
    calls = log.read_text()
    assert "canary" not in calls
    assert len(re.findall(r"execve\(.*\) = 0", calls)) == 1
    assert f'"{top}"' in calls


def exchanged_for_another(qemu, place, top):
    """Another image takes its name."""
    qemu.create(place / "other.qcow2")
    return f"mv {place}/other.qcow2 {top}", "was replaced"


def exchanged_for_a_link(qemu, place, top):
    """A link to an image elsewhere takes its name."""
    qemu.create(place.parent / "other" / "far.qcow2")
    return f"ln -sf {place}/../other/far.qcow2 {top}", "was replaced"


def given_a_data_file(qemu, place, top):
    """Whoever may write into it gives it a data file, at which no other check looks any more."""
    other = with_data_file(qemu, place, f"{place}/c.raw")
    (place / "c.raw").symlink_to("../other/canary")
    return f"cat {other} > {top}", "canary' was opened, which no checked header names"


@pytest.mark.parametrize("exchange", [exchanged_for_another, exchanged_for_a_link, given_a_data_file])
async def test_an_image_that_is_exchanged_after_the_check_is_not_changed(qemu, tmp_path, place, exchange):
    top = qemu.create(place / "top.qcow2")
    first, text = exchange(qemu, place, top)
    wire = Tripwire(qemu, tmp_path / "bin", first)
    canary = (place.parent / "other" / "canary").read_bytes()
    with pytest.raises(FileMoved, match=text) as caught:
        async with wire.offline({"vda": top}):
            pytest.fail("it was opened")
    assert caught.value.changed is Changed.NO
    assert wire.started
    assert (place.parent / "other" / "canary").read_bytes() == canary


async def test_images_of_a_machine_that_runs_are_refused_and_its_process_is_named(
    qemu, images, machine, tmp_path
):
    (tmp_path / "bin").mkdir()
    wire = Tripwire(qemu, tmp_path / "bin")
    made = images("base <- s1 <- s2")
    base, s1, s2 = made.files
    with machine(*blockdev("vda", s2)) as running:
        with pytest.raises(ImageInUse, match="is in use: process") as caught:
            async with wire.offline({"vda": s2}):
                pytest.fail("it was opened")
        assert (caught.value.file, caught.value.pid) == (s2, running.pid)
        async with wire.offline({"vda": s2}, read_only=True) as vm:
            assert (await vm.graph()).chains() == {"vda": (s2, s1, base)}
        assert not wire.started


async def test_an_image_behind_a_loop_device_is_refused(qemu, tmp_path, place):
    wire = Tripwire(qemu, tmp_path / "bin")
    disk = qemu.create(place / "disk.raw", form="raw")
    made = subprocess.run(["losetup", "-f", "--show", disk], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("there are no loop devices for us")
    device = made.stdout.strip()
    try:
        with pytest.raises(ImageInUse, match=f"is in use: the loop device {device} has it open") as caught:
            async with wire.offline({"vda": disk}, formats={"vda": "raw"}):
                pytest.fail("it was opened")
        assert (caught.value.pid, caught.value.program) == (None, device)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert not wire.started
    async with wire.offline({"vda": disk}, formats={"vda": "raw"}) as vm:
        assert (await vm.graph()).chains() == {"vda": (disk,)}


async def test_an_image_on_which_another_stands_is_only_branched_from(qemu, images, tmp_path):
    (tmp_path / "bin").mkdir()
    wire = Tripwire(qemu, tmp_path / "bin")
    made = images("base <- s1")
    base, s1 = made.files
    whole = qemu.read(s1)
    async with wire.offline({"vda": base}) as vm:
        with pytest.raises(StillNeeded, match="still needed by") as caught:
            await vm.snapshot("x", inside=True)
        assert caught.value.by == (s1,)
        done = await vm.snapshot("branch")
    assert done.chains == {"vda": (done.active["vda"], base)}
    assert [note for note in done.notes if "writes into" in note] == []
    assert qemu.read(s1) == whole
    with pytest.raises(StillNeeded, match="is the disk a, and is needed by"):
        async with wire.offline({"a": base, "b": s1}):
            pytest.fail("it was opened")


@pytest.mark.parametrize("cut", ["L2 table", "L1 table", "refcount table"])
async def test_a_truncated_image_is_read_and_not_changed(qemu, images, cut):
    """QEMU takes a lost L1 or L2 table for an empty image, and a stream without refcounts never ends."""
    base, top = images("base <- s1").files
    with Path(top).open("r+b") as file:
        (l1,) = struct.unpack(">Q", os.pread(file.fileno(), 8, 40))
        (l2,) = struct.unpack(">Q", os.pread(file.fileno(), 8, l1))
        size = {"L2 table": l2 & ((1 << 56) - 512), "L1 table": l1, "refcount table": MIB // 16}[cut]
        file.truncate(size)
    async with offline(qemu, {"vda": top}, read_only=True) as vm:
        assert (await vm.graph()).chains()["vda"] == (top, base)
    with pytest.raises(UnsafeImage, match=f"is truncated: its file ends before its {cut}"):
        async with offline(qemu, {"vda": top}):
            pass
    assert Path(top).stat().st_size == size


async def test_an_image_that_is_corrupt_or_encrypted_is_read_and_not_changed(qemu, tmp_path, place):
    wire = Tripwire(qemu, tmp_path / "bin")
    top = place / "top.qcow2"
    qemu.create(top)
    for offset, value, kind, text in (
        (79, 2, UnsafeImage, "is marked as corrupt"),
        (79, 1, UnsafeImage, "was not closed properly"),
        (35, 2, Unsupported, "is encrypted"),
    ):
        header = bytearray(top.read_bytes())
        header[offset] = value
        (place / "x.qcow2").write_bytes(header)
        async with wire.offline({"vda": place / "x.qcow2"}, read_only=True) as vm:
            assert (await vm.graph()).chains() == {"vda": (f"{place}/x.qcow2",)}
        with pytest.raises(kind, match=text) as caught:
            async with wire.offline({"vda": place / "x.qcow2"}):
                pytest.fail("it was opened")
        assert isinstance(caught.value, Refused)
        assert caught.value.hint
    assert not wire.started
