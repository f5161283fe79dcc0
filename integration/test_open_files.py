"""A file is what QEMU has open, not what its name says: moved, replaced, removed, relative, by descriptor."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

import qmpsnap
from integration.known_images import MIB, overwritten
from integration.machines import CHEAP, Machine, Monitor, blockdev, drive, listing, traced, wait_for
from qmpsnap.plan.intent import Commit

WRITE = (0xE1, 5 * MIB, 65536)


def hda(_, file):
    return ("-hda", file)


def dead(pid):
    """Whether the process has ended; that it was nobody's child may leave a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_headers(qemu, *files):
    """Demand that the images, active first, lead to each other by their headers, while they are in use."""
    told = json.loads(qemu.img("info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", files[0]))
    assert [os.path.realpath(one["filename"]) for one in told] == list(files)


def in_root():
    """What lies in `/`, without what a test beside this one puts there for a moment."""
    return {path for path in Path("/").iterdir() if not path.name.startswith("qmpsnap-test-")}


def chain_of(graph):
    (disk,) = (disk for disk in graph.disks.values() if disk.layers)
    return disk.files


async def start_again(qemu, machine, files, expected):
    """Start a machine from the file of an answer, from another directory; its disk reads that."""
    with machine(*drive("vda", files[0]), cwd="/") as again:
        async with again.connect() as vm:
            assert (await vm.graph()).disks["vda"].files == tuple(files)
    assert qemu.read(files[0]) == expected


# -- a name that was lost ----------------------------------------------------------------------------


def moved(file, other):
    file.rename(other)


def replaced(file, other):
    file.rename(other)
    file.write_bytes(other.read_bytes())


def exchanged_by_a_copy(file, other):
    other.write_bytes(file.read_bytes())
    other.rename(file)


def removed(file, _):
    file.unlink()


LOST = {"moved": moved, "replaced": replaced, "copied over": exchanged_by_a_copy, "removed": removed}
VERBS = {
    "snapshot": lambda vm: vm.snapshot("one"),
    "snapshot-internal": lambda vm: vm.snapshot("one", inside=True),
    "checkpoint": lambda vm: vm.checkpoint("one", mode="stop"),
    "checkpoint-internal": lambda vm: vm.checkpoint("one", mode="internal"),
    "commit": lambda vm: vm.commit(next(iter(vm.known))),
    "stream": lambda vm: vm.stream(next(iter(vm.known))),
    "revert": lambda vm: vm.revert("before"),
}


async def refused(vm, error):
    """Demand that every verb refuses with that error before it sends anything."""
    vm.known = [name for name, disk in (await vm.graph()).disks.items() if disk.layers][:1]
    with traced(vm) as sent:
        for name, verb in VERBS.items():
            with pytest.raises(error) as refusal:
                await verb(vm)
            assert refusal.value.hint, name
    assert sent == []
    return refusal.value


@pytest.mark.parametrize("layer", ["s1", "base"])
@pytest.mark.parametrize("lost", LOST)
async def test_a_lost_name_is_refused_and_the_disk_can_be_copied_away(
    qemu, images, machine, tmp_path, lost, layer
):
    made = images("base <- s1")
    way = {"moved": drive, "replaced": blockdev, "copied over": hda, "removed": drive}[lost]
    file, other = tmp_path / f"{layer}.qcow2", tmp_path / "other.qcow2"
    with machine(*way("vda", made.active)) as m:
        qdev = next(row["qdev"] for row in m.qmp("query-block") if row.get("inserted"))
        name = qdev if way is hda else "vda"
        m.write(name, *WRITE)
        LOST[lost](file, other)
        before = listing(tmp_path)
        async with m.connect() as vm:
            error = await refused(vm, qmpsnap.FileMoved)
            assert error.file == str(file)
            assert error.path == (str(other) if lost in {"moved", "replaced"} else "")
            assert listing(tmp_path) == before
            assert any(str(file) in told and "mirror" in told for told in vm.warnings)
            done = await vm.mirror(vm.known[0], tmp_path / "new.qcow2", ending="pivot")
            assert done.chains[vm.known[0]] == (str(tmp_path / "new.qcow2"),)
            assert (await vm.snapshot("after")).notes == ()
            files = chain_of(await vm.graph())
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))


async def test_a_file_that_was_moved_back_is_worked_on_again(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    with machine(*drive("vda", made.active)) as m:
        async with m.connect() as vm:
            Path(made.active).rename(tmp_path / "x")
            with pytest.raises(qmpsnap.FileMoved):
                await vm.snapshot("one")
            (tmp_path / "x").rename(made.active)
            await vm.snapshot("one")
            m.write("vda", *WRITE)
            files = chain_of(await vm.graph())
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
async def test_any_name_of_the_file_will_do(qemu, images, machine, tmp_path, kind):
    made = images("base <- s1")
    link = tmp_path / "link.qcow2"
    link.symlink_to(made.active) if kind == "symlink" else link.hardlink_to(made.active)
    with machine(*drive("vda", link)) as m:
        async with m.connect() as vm:
            if kind == "hard link":
                Path(made.active).unlink()
            await vm.snapshot("one")
            m.write("vda", *WRITE)
            files = chain_of(await vm.graph())
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))


async def test_a_data_file_that_was_moved_is_refused(qemu, machine, tmp_path):
    data = tmp_path / "vda.data"
    qemu.create(tmp_path / "vda.qcow2", options=f"data_file={data},data_file_raw=on")
    with machine(*blockdev("vda", tmp_path / "vda.qcow2")) as m:
        async with m.connect() as vm:
            data.rename(tmp_path / "x.data")
            with pytest.raises(qmpsnap.FileMoved) as error:
                await vm.snapshot("one")
            assert (error.value.file, error.value.path) == (str(data), str(tmp_path / "x.data"))
            (tmp_path / "x.data").rename(data)
            await vm.snapshot("one")


async def test_files_are_told_apart_where_qemu_has_a_mount_namespace_of_its_own(
    qemu, images, machine, tmp_path
):
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can make a mount namespace")
    made = images("base <- s1")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / Path(qemu.system).name
    program.write_text(f'#!/bin/sh\nexec unshare -m {qemu.system} "$@"\n')
    program.chmod(0o755)
    inside = replace(qemu, directory=program.parent)
    with Machine(inside, tmp_path, *drive("vda", made.active)) as m:
        async with m.connect() as vm:
            done = await vm.snapshot("one")
            assert "not visible" not in " ".join(done.notes)
            Path(made.files[0]).rename(tmp_path / "x")
            with pytest.raises(qmpsnap.FileMoved) as error:
                await vm.commit("vda")
            assert (error.value.file, error.value.path) == (made.files[0], str(tmp_path / "x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start QEMU in a chroot")
async def test_image_in_qemu_s_chroot_is_not_written_to_for_the_overlay_of_that_name_here(
    qemu, images, machine, tmp_path
):
    made, jail = images("base"), tmp_path / "jail"
    inside = jail / tmp_path.relative_to("/")
    inside.mkdir(parents=True)
    stranger = Path(qemu.create(inside / "base.one.qcow2"))
    content = stranger.read_bytes()
    into = ["-chroot", jail] if qemu.short == "7.2" else ["-run-with", f"chroot={jail}"]
    with machine(*drive("vda", made.active), *into) as m:
        async with m.connect() as vm:
            with pytest.raises(qmpsnap.TargetExists, match="on QEMU's host, and was not touched"):
                await vm.snapshot("one")
            assert (await vm.graph()).chains() == {"vda": (made.active,)}
            with pytest.raises(qmpsnap.Unsupported, match="not visible from here"):
                await vm.checkpoint("one", mode="in-place")
    assert stranger.read_bytes() == content


# -- snapshot mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["qcow2", "raw"])
@pytest.mark.parametrize("way", ["-snapshot", "snapshot=on"])
async def test_a_disk_in_snapshot_mode_is_refused_and_commit_keeps_what_was_written(
    qemu, images, machine, tmp_path, way, form
):
    made = images("base", base_format=form)
    qemu.create(tmp_path / "other.qcow2")
    vda = drive("vda", made.active, form)
    words = (*vda, "-snapshot") if way == "-snapshot" else (vda[0], f"{vda[1]},snapshot=on", *vda[2:])
    # -snapshot speaks of -drive alone
    with machine(*words, *blockdev("vdb", tmp_path / "other.qcow2")) as m:
        m.write("vda", *WRITE)
        before = listing(tmp_path)
        async with m.connect() as vm:
            await refused_in_snapshot_mode(vm, tmp_path)
            assert listing(tmp_path) == before
            await vm.snapshot("one", disks=["vdb"])
            assert (tmp_path / "other.one.qcow2").exists()
            done = await vm.commit("vda")
            assert done.chains["vda"] == (made.active,)
            assert done.invalid == ()
            await vm.snapshot("one-more", disks=["vda"])
            m.write("vda", 0xE2, 6 * MIB, 65536)
            files = (await vm.graph()).disks["vda"].files
    wanted = overwritten(made.content[-1], WRITE)
    assert qemu.read(made.active, form) == wanted
    await start_again(qemu, machine, files, overwritten(wanted, (0xE2, 6 * MIB, 65536)))


async def refused_in_snapshot_mode(vm, folder):
    with traced(vm) as sent:
        for call in (
            vm.snapshot("one"),
            vm.snapshot("one", files={"vda": folder / "new.qcow2"}),
            vm.mirror("vda", folder / "new.qcow2", ending="finish"),
            vm.mirror("vda", folder / "new.qcow2", ending="pivot"),
            vm.stream("vda"),
            vm.snapshot("one", inside=True),
            vm.checkpoint("one", mode="stop"),
        ):
            with pytest.raises(qmpsnap.Unsupported, match="vda is in snapshot mode"):
                await call
    assert sent == []


# -- names that mean something else elsewhere --------------------------------------------------------


class Daemon:
    """A QEMU that went to `/` (-daemonize), with a monitor for the test and one for us."""

    def __init__(self, qemu, folder, *arguments, cwd):
        self.qemu, self.folder = qemu, folder
        self.socket, pid = str(folder / "q"), folder / "pid"
        subprocess.run(
            [
                qemu.system, *CHEAP, *arguments, "-daemonize", "-pidfile", pid,
                "-qmp", f"unix:{self.socket},server=on,wait=off",
                "-qmp", f"unix:{folder}/t,server=on,wait=off",
            ],
            check=True, cwd=cwd,
        )  # fmt: skip
        self.pid = int(pid.read_text())
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(f"{folder}/t")
        self.qmp = Monitor(sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: dead(self.pid), "QEMU's end")
        self.qmp.close()
        for name in ("q", "t", "pid"):
            (self.folder / name).unlink(missing_ok=True)

    def connect(self, **options):
        return qmpsnap.connect(self.socket, **options)

    def quit(self):
        with contextlib.suppress(EOFError, ConnectionResetError):
            self.qmp("quit")
        wait_for(lambda: dead(self.pid), "QEMU's end")


@pytest.fixture(params=["daemonized", "relative"])
def by_relative_name(request, qemu, machine, tmp_path):
    """Start a machine whose disk `vda` has the relative name img/FILE."""

    def start(file):
        start.gone = request.param == "daemonized"
        words = drive("vda", f"img/{file}")
        if request.param == "relative":
            return machine(*words, cwd=tmp_path)
        return Daemon(qemu, tmp_path, *words, cwd=tmp_path)

    return start


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
async def test_what_is_written_of_a_relative_name_leads_to_the_file(
    qemu, images, machine, tmp_path, by_relative_name, relative
):
    made = images("base <- s1 <- s2 <- s3", folder="img", relative=relative)
    root = in_root()
    with by_relative_name("s3.qcow2") as m:
        async with m.connect() as vm:
            assert (await vm.graph()).disks["vda"].files == made.chain
            await vm.snapshot("one")
            one = str(tmp_path / "img" / "base.one.qcow2")
            check_headers(qemu, one, *made.chain)
            if (
                by_relative_name.gone and relative
            ):  # QEMU has these read-only, and would have to open them again
                for call in (
                    vm.commit("vda", top="s2.qcow2", base="s1.qcow2"),
                    vm.stream("vda", base="base.qcow2", into="s2.qcow2"),
                ):
                    with pytest.raises(
                        qmpsnap.Unsupported, match="does not exist relative to its working directory"
                    ):
                        await call
            else:
                await vm.commit("vda", top="s2.qcow2", base="s1.qcow2")
                check_headers(qemu, one, made.files[3], made.files[1], made.files[0])
                await vm.stream("vda", base="base.qcow2", into="s3.qcow2")
                check_headers(qemu, one, made.files[3], made.files[0])
            with pytest.raises(qmpsnap.Unsupported, match="where that name leads nowhere"):
                await vm.mirror("vda", tmp_path / "new.qcow2", ending="pivot", sync="top")
            await vm.stream("vda", base="base.qcow2")
            check_headers(qemu, one, made.files[0])
            assert {one.name for one in (await vm.moments()).moments} <= {"one"}
            files = chain_of(await vm.graph())
        m.quit()
    assert in_root() == root
    assert files == (one, made.files[0])
    await start_again(qemu, machine, files, made.content[-1])


@pytest.mark.skipif(not os.access("/", os.W_OK), reason="only root can put a file beside QEMU's feet")
async def test_a_relative_name_that_leads_to_another_file_is_refused(qemu, images, tmp_path):
    name = f"qmpsnap-test-{os.getpid()}"
    made = images(f"base <- {name}", folder="img")
    other = Path(f"/{name}.qcow2")
    with Daemon(qemu, tmp_path, *drive("vda", f"{name}.qcow2"), cwd=tmp_path / "img") as m:
        other.write_bytes(Path(made.active).read_bytes())
        try:
            async with m.connect() as vm:
                with pytest.raises(qmpsnap.FileMoved, match=f"QEMU calls .* '{name}.qcow2'"):
                    await vm.snapshot("one")
                await vm.mirror("vda", tmp_path / "new.qcow2", ending="pivot")
                assert chain_of(await vm.graph()) == (str(tmp_path / "new.qcow2"),)
        finally:
            other.unlink()


async def test_a_file_given_by_descriptor_is_known_by_its_path(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    with contextlib.ExitStack() as stack:
        numbers = []
        for flags in (os.O_RDWR, os.O_RDONLY):
            numbers.append(os.open(made.active, flags))
            stack.callback(os.close, numbers[-1])
        words = [word for number in numbers for word in ("-add-fd", f"fd={number},set=3")]
        m = stack.enter_context(machine(*words, *drive("vda", "/dev/fdset/3"), pass_fds=numbers))
        async with m.connect() as vm:
            assert (await vm.graph()).disks["vda"].files == made.chain
            await vm.snapshot("one")
            m.write("vda", *WRITE)
            files = chain_of(await vm.graph())
            assert files == (str(tmp_path / "base.one.qcow2"), *made.chain)
            with pytest.raises(qmpsnap.Unsupported, match="as a file descriptor"):
                await vm.commit("vda", base="s1.qcow2")
            check_headers(qemu, *files)
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))


@pytest.mark.parametrize("way", [drive, blockdev])
async def test_a_file_given_by_descriptor_is_mirrored_and_with_blockdev_streamed_into(
    qemu, images, machine, tmp_path, way
):
    made = images("base <- s1")
    with contextlib.ExitStack() as stack:
        numbers = []
        for flags in (os.O_RDWR, os.O_RDONLY):
            numbers.append(os.open(made.active, flags))
            stack.callback(os.close, numbers[-1])
        words = [word for number in numbers for word in ("-add-fd", f"fd={number},set=3")]
        m = stack.enter_context(machine(*words, *way("vda", "/dev/fdset/3"), pass_fds=numbers))
        async with m.connect() as vm:
            m.write("vda", *WRITE)
            if way is blockdev:
                assert (await vm.stream("vda")).chains == {"vda": (made.active,)}
            else:
                with pytest.raises(qmpsnap.CommandFailed, match='"write" lock') as caught:
                    await vm.stream("vda")
                assert caught.value.changed is qmpsnap.Changed.NO
                assert (await vm.graph()).chains() == {"vda": made.chain}
            await vm.mirror("vda", tmp_path / "copy.qcow2", ending="pivot")
            files = chain_of(await vm.graph())
            assert files == (str(tmp_path / "copy.qcow2"),)
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))


# -- a part of a file --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "qcow2"])
async def test_a_part_of_a_file_is_not_named_as_if_it_were_all(qemu, images, machine, tmp_path, form):
    made = images("base", base_format=form)
    inner = Path(made.active).read_bytes()
    whole = tmp_path / "disk.img"
    whole.write_bytes(bytes([0xD1]) * MIB + inner + bytes([0xD2]) * 8 * MIB)
    file = {"driver": "file", "filename": str(whole)}
    # qcow2 grows within its part
    part = {"driver": "raw", "offset": MIB, "size": (len(inner) if form == "raw" else 8 * MIB), "file": file}
    node = part if form == "raw" else {"driver": "qcow2", "file": part}
    words = ("-blockdev", json.dumps({**node, "node-name": "n"}))
    with machine(*words, "-device", "virtio-blk-pci,drive=n,id=vda") as m:
        m.write("vda", *WRITE)
        before = listing(tmp_path)
        async with m.connect() as vm:
            assert (await vm.graph()).disks["vda"].layers[0].window
            with traced(vm) as sent:
                for call in (vm.snapshot("one"), vm.checkpoint("one", mode="in-place")):
                    with pytest.raises(qmpsnap.Unsupported, match="vda is a part of"):
                        await call
            assert sent == []
            assert listing(tmp_path) == before
            await vm.mirror("vda", tmp_path / "new.qcow2", format="qcow2", ending="pivot")
            await vm.snapshot("one")
            files = chain_of(await vm.graph())
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))


async def test_layers_above_a_part_of_a_file_lead_to_that_part(qemu, images, machine, tmp_path):
    made = images("base", base_format="raw")
    inner = Path(made.active).read_bytes()
    whole = tmp_path / "disk.img"
    whole.write_bytes(bytes([0xD1]) * MIB + inner)
    file = {"driver": "file", "filename": str(whole)}
    part = {"driver": "raw", "offset": MIB, "size": len(inner), "file": file}
    top = qemu.create(tmp_path / "top.qcow2", backing="json:" + json.dumps(part), backing_format="raw")
    with machine(*drive("vda", top)) as m:
        async with m.connect() as vm:
            assert [one.window for one in (await vm.graph()).disks["vda"].layers] == [False, True]
            await vm.snapshot("one")
            m.write("vda", *WRITE)
            await vm.snapshot("two")
            await vm.commit("vda", top="one", base="top.qcow2")
            await vm.snapshot("three")
            await vm.commit("vda", top="top.qcow2")
            await vm.mirror("vda", tmp_path / "new.qcow2", ending="pivot", sync="top")
            files = (await vm.graph()).disks["vda"].files
    assert files == (str(tmp_path / "new.qcow2"), str(tmp_path / "disk.two.qcow2"), str(whole))
    await start_again(qemu, machine, files, overwritten(made.content[-1], WRITE))
    assert whole.read_bytes()[:MIB] == bytes([0xD1]) * MIB


# -- an image in a node of another driver ------------------------------------------------------------


async def test_an_image_under_a_raw_driver_is_neither_named_nor_copied(qemu, images, machine, tmp_path):
    made = images("base <- s1")
    over = {
        "driver": "qcow2",
        "node-name": "s1-node",
        "file": {"driver": "file", "filename": made.active},
    }
    words = ("-blockdev", json.dumps({"driver": "raw", "node-name": "vda-node", "file": over}))
    with machine(*words, "-device", "virtio-blk-pci,drive=vda-node,id=vda") as m:
        m.write("vda", *WRITE)
        before = listing(tmp_path)
        async with m.connect() as vm:
            copy = tmp_path / "copy.qcow2"
            with traced(vm) as sent:
                for call in (
                    vm.snapshot("one"),
                    vm.checkpoint("one"),
                    vm.mirror("vda", copy, ending="pivot", format="qcow2"),
                    vm.mirror("vda", copy, ending="finish", format="qcow2", sync="top"),
                ):
                    with pytest.raises(qmpsnap.Unsupported, match="raw over an image of the format qcow2"):
                        await call
            assert (sent, listing(tmp_path)) == ([], before)
    top = qemu.create(tmp_path / "top.qcow2")
    low = {"driver": "raw", "file": {**over, "node-name": "low"}}
    words = ("-blockdev", json.dumps({"driver": "qcow2", "node-name": "vda-node", "backing": low,
                                      "file": {"driver": "file", "filename": top}}))  # fmt: skip
    with machine(*words, "-device", "virtio-blk-pci,drive=vda-node,id=vda") as m:
        async with m.connect() as vm:
            with traced(vm) as sent:
                for call in (vm.stream("vda"), vm.mirror("vda", tmp_path / "copy", ending="pivot")):
                    with pytest.raises(qmpsnap.Unsupported, match="raw over an image of the format qcow2"):
                        await call
            assert sent == []
            await vm.commit("vda", base="s1.qcow2", folded="remove")
    assert qemu.read(made.active) == overwritten(made.content[-1], WRITE)


# -- what was written is read back -------------------------------------------------------------------


async def test_an_operation_is_not_done_before_the_header_leads_to_the_file(qemu, images, machine, tmp_path):
    made = images("base <- s1 <- s2 <- s3")
    with machine(*drive("vda", made.active)) as m:
        async with m.connect() as vm:
            plan = await vm.plan(Commit("vda", top="s2.qcow2", base="s1.qcow2"))
            astray = [
                structs.replace(
                    stage,
                    steps=tuple(
                        structs.replace(
                            step, arguments=dict(step.arguments) | {"backing-file": "img/s1.qcow2"}
                        )
                        if step.command == "block-commit"
                        else step
                        for step in stage.steps
                    ),
                )
                for stage in plan.stages
            ]
            with pytest.raises(qmpsnap.GraphMismatch, match=r"'img/s1\.qcow2', not ") as error:
                await vm.run(replace(plan, stages=tuple(astray)))
            assert error.value.changed is qmpsnap.Changed.YES
        async with m.connect() as vm:  # whoever comes later is told the same
            with pytest.raises(qmpsnap.Incomplete, match=r"'img/s1\.qcow2', not ") as later:
                await vm.jobs.wait(plan.operation_id)
            assert Path(made.files[2]).exists()
            line, _, _ = later.value.hint.removeprefix("while this QEMU runs: ").partition(", then ")
            name, arguments = shlex.split(line)[2:]
            m.qmp(name, json.loads(arguments))
            await vm.jobs.wait(plan.operation_id)
            assert not list(tmp_path.rglob("intent-*"))
            files = chain_of(await vm.graph())
    assert files == (made.files[3], made.files[1], made.files[0])
    await start_again(qemu, machine, files, made.content[-1])
