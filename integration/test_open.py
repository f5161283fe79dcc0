"""Disks as they were at a moment, read from outside while the machine writes on.

What is read is compared with the known content of the layers by qemu-img; the machine must not notice.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from integration.cli import ROOT, Cli
from integration.known_images import KIB, MIB, content, overwritten
from integration.machines import WAYS, blockdev, drive, listing, traced, wait_for
from qmpsnap.errors import Busy, GraphMismatch, NotInChain, TargetExists
from qmpsnap.plan.intent import Delete

HOWTO = (ROOT / "docs" / "howto" / "look-inside.md").read_text()


@pytest.fixture(autouse=True)
def _tools(qemu, monkeypatch):
    monkeypatch.setenv("PATH", f"{qemu.directory}:{os.environ['PATH']}")


def read(qemu, uri, tmp_path):
    """The whole disk, as qemu-img reads it over NBD."""
    copy = tmp_path / "copy.raw"
    qemu.img("convert", "-f", "raw", "-O", "raw", uri, copy)
    try:
        return copy.read_bytes()
    finally:
        copy.unlink()


@pytest.fixture
def place(temporary, monkeypatch):
    """The directory for temporary files, of this test and of the commands that it starts alone."""
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return temporary


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_open_reads_every_kind_of_moment_while_the_guest_writes(
    qemu, images, machine, way, tmp_path, place
):
    made = images("base <- s1")
    known, data = {}, content(2)
    with machine(*way("vda", made.active)) as running:
        async with running.connect() as vm:
            for number, (name, inside) in enumerate(
                {"e1": False, "i1": True, "e2": False, "i2": True}.items()
            ):
                await vm.snapshot(name, inside=inside)
                known[name] = data
                write = (0xA0 + number, number * 64 * KIB, 96 * KIB)
                running.write("vda", *write)
                data = overwritten(data, write)
            files = listing(tmp_path)
            with traced(vm) as sent:
                for name, expected in known.items():
                    async with vm.open(name) as view:
                        running.write("vda", 0xEE, 7 * MIB, 64 * KIB)
                        assert read(qemu, view.uri, tmp_path) == expected, name
                        assert (view.disk, view.virtual_size) == ("vda", len(expected))
                        assert Path(view.socket).parent.stat().st_mode & 0o777 == 0o700
                        assert list(place.iterdir()) == [Path(view.socket).parent]
            assert sent == []
            assert list(place.iterdir()) == []
            assert listing(tmp_path) == files
            running.read("vda", 0xEE, 7 * MIB, 64 * KIB)


async def test_open_keeps_the_layers_from_being_written(qemu, images, machine, tmp_path, leftovers):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            chain = (await vm.snapshot("e1")).chains["vda"]
            await vm.snapshot("e2")
            async with vm.open("e1") as view:
                for options in ({}, {"top": "s1"}, {"top": "e1"}):
                    with pytest.raises(Busy, match="a snapshot is being read from"):
                        await vm.commit("vda", **options)
                with pytest.raises(Busy, match=r"being read from .*\(qmpsnap open, or backup run\)"):
                    await vm.delete("e1")
                await vm.plan(Delete("e2"))  # its layers are others
                assert (await vm.graph()).disks["vda"].files[1:] == chain
                streamed = await vm.stream("vda", base="base")  # it reads the layers, and writes to none
                assert streamed.chains["vda"][1:] == (made.files[0],)
                assert read(qemu, view.uri, tmp_path) == content(3)
            async with vm.open("e1") as view:  # its layers are in no chain now
                assert view.layers == made.chain
                assert read(qemu, view.uri, tmp_path) == content(3)
            await vm.commit("vda", keep_overlay=True, invalidate=chain[:-1])
            leftovers.allow(*tmp_path.glob("*.qmpsnap/intent-*"))  # it says what is invalid
            with pytest.raises(NotInChain, match="no longer holds a snapshot"):
                async with vm.open("e1"):
                    pass


async def test_open_of_a_branch_that_a_revert_left_and_of_a_raw_base(qemu, images, machine, tmp_path):
    made = images("base", base_format="raw")
    with machine(*drive("vda", made.active, "raw")) as running:
        async with running.connect() as vm:
            await vm.snapshot("e1")
            running.write("vda", 0xA1, 0, 64 * KIB)
            await vm.snapshot("e2")
            async with vm.open("e1") as view:
                assert read(qemu, view.uri, tmp_path) == content(1)
            await vm.revert("e1")
            async with vm.open("e2") as view:
                assert read(qemu, view.uri, tmp_path) == overwritten(content(1), (0xA1, 0, 64 * KIB))


async def test_open_says_that_its_snapshot_was_deleted_meanwhile(images, machine):
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("i1", inside=True)
            async with vm.open("i1"):
                with pytest.raises(Busy, match="'i1' of vda is being read"):
                    await vm.delete("i1")
            with pytest.raises(GraphMismatch, match="'i1' was deleted from"):
                async with vm.open("i1"):
                    running.qmp("blockdev-snapshot-delete-internal-sync", device="vda-node", name="i1")


async def test_open_as_a_file(qemu, images, machine, tmp_path):
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("there is no FUSE here")
    made = images("base")
    with machine(*blockdev("vda", made.active)) as running:
        async with running.connect() as vm:
            await vm.snapshot("i1", inside=True)
            await vm.snapshot("e1")
            running.write("vda", 0xA1, 0, 64 * KIB)
            for name in ("e1", "i1"):
                async with vm.open(name, fuse=tmp_path) as view:
                    assert view.file == str(tmp_path / "vda.raw")
                    assert Path(view.file).read_bytes() == content(1)
                    with pytest.raises(TargetExists):
                        async with vm.open(name, fuse=tmp_path):
                            pass
                assert not Path(view.file).exists()


@pytest.mark.one_qemu
def test_howto_reads_a_file_out_of_a_snapshot(qemu, machine, tmp_path):
    if shutil.which("debugfs") is None or shutil.which("mkfs.ext4") is None:
        pytest.skip("e2fsprogs are not installed")
    section = HOWTO.split("## Without root")[1].split("##")[0]
    lines = re.findall(r"^\$ (.*)$", section, re.MULTILINE)
    assert len(lines) == 3
    disk, content = tmp_path / "disk.raw", tmp_path / "content"
    content.mkdir()
    (content / "hello.txt").write_text("as it was\n")
    subprocess.run(["mkfs.ext4", "-q", "-d", content, disk, "16M"], check=True)
    shutil.rmtree(content)
    with machine(*blockdev("vda", disk, "raw")) as running:
        cli = Cli(running)
        assert cli("snapshot", "e1").code == 0
        running.write("vda", 0, 0, 16 * MIB)
        process = cli.start("open", "e1")
        uri = process.stdout.readline().split()[3]
        place = tmp_path / "out"
        place.mkdir()
        for line in lines:
            subprocess.run(line, shell=True, check=True, cwd=place, env=cli.environment | {"URI": uri})
        assert (place / "hello.txt").read_text() == "as it was\n"
        process.send_signal(signal.SIGINT)
        assert cli.end(process).code == 0


@pytest.mark.one_qemu
async def test_open_on_the_command_line_leaves_the_monitor_to_others(qemu, images, machine, tmp_path, place):
    made = {name: images("base <- s1", folder=name) for name in ("vda", "vdb")}
    arguments = [word for name, one in made.items() for word in blockdev(name, one.active)]
    with machine(*arguments) as running:
        cli = Cli(running)
        cli("snapshot", "e1")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            process = cli.start("--json", "open", "e1")
            views = json.loads(process.stdout.readline())["views"]
            assert [view["disk"] for view in views] == ["vda", "vdb"]
            running.write("vdb", 0xA1, 0, 64 * KIB)
            assert cli("chain").code == 0
            for view in views:
                assert read(qemu, view["uri"], tmp_path) == content(2)
            process.send_signal(number)
            ended = cli.end(process)
            if number != signal.SIGKILL:
                assert (ended.code, ended.out, ended.err) == (0, "", "")
                assert list(place.iterdir()) == []
        wait_for(lambda: not list(place.iterdir()), "the removal of the sockets")
        refused = cli("open", "nothing")
        assert (refused.code, refused.out) == (3, "")
