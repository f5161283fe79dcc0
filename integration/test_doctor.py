"""Each trouble is made on a real QEMU, found, mended by the command that is printed, and then gone."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import anyio
import pytest

import qmpsnap
from integration.cli import Cli
from integration.known_images import MIB, QEMUS, content
from integration.machines import Machine, blockdev, drive, throttled, wait_for
from integration.test_encryption import encrypted
from qmpsnap.cli.main import run as run_command
from qmpsnap.run.sockets import clients_of

ONE = pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])


class Doctor:
    """The doctor of a machine or of images, as it is typed; its commands are run exactly as printed."""

    def __init__(self, capsys, qemu, *words):
        self.words, self._capsys, self._qemu = words, capsys, qemu

    def look(self, *more):
        """What it finds, as (code, subject), and the lines that mend it."""
        code, out, err = self._run(*self.words, *more, "doctor")
        assert err == "", err
        lines = out.splitlines()
        named = [line.removeprefix("limit: ") for line in lines if not line.startswith(" ")]
        self.mending = [line.removeprefix("  mend: ") for line in lines if line.startswith("  mend: ")]
        limits = sum(line.startswith("limit: ") for line in lines)
        healthy = lines[0] == "no trouble found"
        assert (code, healthy) in {(0, True), (8, False)}
        self.text = out
        return [tuple(line.split(": ", 1)) for line in named[healthy:]], limits

    def troubles(self):
        found, limits = self.look()
        return found[: len(found) - limits]

    def mend(self):
        """Run what was printed; the exit codes."""
        return [self.do(line) for line in self.mending]

    def do(self, line):
        if line.startswith("qmpsnap "):
            code, _, err = self._run(*shlex.split(line)[1:])
            assert code == 0, f"{line}: {err}"
            return
        path = {"PATH": f"{self._qemu.directory}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", line], env=os.environ | path, check=True, capture_output=True)

    def mend_all(self, rounds=6):
        """Look and mend until nothing is found; every trouble that was found meanwhile."""
        seen = []
        for _ in range(rounds):
            found = self.troubles()
            seen += [one for one in found if one not in seen]
            if not found:
                return seen
            self.mend()
        raise AssertionError(f"still ill after {rounds} rounds: {self.text}")

    def _run(self, *words):
        code = run_command([str(word) for word in words])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def doctor(capsys, qemu):
    def make(machine):
        return Doctor(capsys, qemu, "-s", machine.socket)

    return make


def forget_format(image):
    """Make the extension of the header that records the format of the backing file an unknown one."""
    path = Path(image)
    path.write_bytes(path.read_bytes().replace(bytes.fromhex("e2792aca"), bytes.fromhex("11111111"), 1))


def node_of(running, file, driver="qcow2"):
    nodes = running.qmp("query-named-block-nodes", flat=True)
    return next(one["node-name"] for one in nodes if one["file"] == str(file) and one["drv"] == driver)


# -- what is well ------------------------------------------------------------------------------------


@ONE
def test_unusual_settings_that_are_right_are_healthy(qemu, machine, doctor, tmp_path):
    def image(name, form="qcow2", **more):
        return qemu.create(tmp_path / name, MIB, form=form, **more)

    base = image("base.qcow2")
    relative = image("relative.qcow2", backing="base.qcow2")
    secret = "secret,id=s,data=abc"
    _, luks = encrypted(qemu, tmp_path, "qcow2")
    luks["node-name"] = "luks-node"
    quorum = {"driver": "quorum", "node-name": "quorum-node", "vote-threshold": 1, "children": [
        {"driver": "qcow2", "file": {"driver": "file", "filename": image(name)}} for name in ("q1", "q2")
    ]}  # fmt: skip
    zeroes = {"driver": "qcow2", "node-name": "zero-node", "detect-zeroes": "unmap", "discard": "unmap",
              "file": {"driver": "file", "filename": image("zero.qcow2"), "discard": "unmap"}}  # fmt: skip
    served, nbd = f"{tmp_path}/nbd", image("nbd.raw", "raw")
    remote = {"driver": "nbd", "node-name": "nbd-node", "server": {"type": "unix", "path": served}}
    server = subprocess.Popen([qemu.directory / "qemu-nbd", "-k", served, "-f", "raw", "-t", nbd])
    wait_for(lambda: Path(served).exists(), "the NBD server")
    try:
        with machine(
            *throttled("vda", relative), *drive("vdb", image("b.raw", "raw"), "raw"),
            "-object", "iothread,id=io", "-object", secret,
            "-blockdev", json.dumps(zeroes), "-device", "virtio-blk-pci,drive=zero-node,id=vdc,iothread=io",
            "-drive", f"if=none,id=ro,format=qcow2,readonly=on,file={base}",
            "-device", "virtio-blk-pci,drive=ro,id=vdd",
            "-drive", f"if=none,id=tmp,format=qcow2,snapshot=on,file={image('snap.qcow2')}",
            "-device", "virtio-blk-pci,drive=tmp,id=vde",
            "-blockdev", json.dumps(remote),
            "-device", "virtio-blk-pci,drive=nbd-node,id=vdf",
            "-blockdev", json.dumps(luks), "-device", "virtio-blk-pci,drive=luks-node,id=vdg",
            "-blockdev", json.dumps(quorum), "-device", "virtio-blk-pci,drive=quorum-node,id=vdh",
            "-drive", f"if=none,id=iso,media=cdrom,readonly=on,format=raw,file={image('cd.iso', 'raw')}",
            "-device", "ide-cd,drive=iso,id=cd0,bus=ide.0", "-device", "ide-cd,id=cd1,bus=ide.1",
            *(word for unit in (0, 1) for word in (
                "-drive", f"if=pflash,unit={unit},format=raw,file={image(f'flash{unit}.fd', 'raw')}")),
            "-qmp", f"unix:{tmp_path}/second,server=on,wait=off",
        ) as running:  # fmt: skip
            doctor = doctor(running)
            assert doctor.troubles() == [], doctor.text
            running.qmp("cont")
            assert doctor.troubles() == [], doctor.text
    finally:
        server.kill()
        server.wait()


# -- what is wrong with a running machine ------------------------------------------------------------


def slow_backup(running, job_id, disk, target, **more):
    """A job of another client, which goes on for as long as it is let."""
    running.qmp("blockdev-add", {"driver": "null-co", "node-name": target, "size": 8 * MIB})
    running.qmp("blockdev-backup", {"job-id": job_id, "device": f"{disk}-node", "target": target,
                                    "sync": "full", "auto-dismiss": False, **more})  # fmt: skip


def test_jobs_nodes_headers_and_bitmaps_are_mended(qemu, images, machine, doctor, tmp_path):
    one, two, raw = images(folder="a"), images("base", folder="b"), images(folder="c", base_format="raw")
    qemu.img("bitmap", "--add", two.active, "b0")
    with machine(*blockdev("vda", two.active)) as running:
        running.write("vda", 7, 0, 65536)
        running.kill()
    forget_format(raw.files[1])
    with machine(
        *blockdev("vda", one.active), *blockdev("vdb", two.active), *blockdev("vdc", raw.active)
    ) as running:
        running.write("vda", 0x77, "5M", 65536)
        middle = node_of(running, one.files[1])
        running.qmp("change-backing-file", {"device": "vda-node", "image-node-name": middle,
                                            "backing-file": "gone.qcow2"})  # fmt: skip
        left = qemu.create(tmp_path / "left.qcow2")
        file = {"driver": "file", "filename": left}
        running.qmp("blockdev-add", {"driver": "qcow2", "node-name": "left", "file": file})
        running.qmp("blockdev-add", {"driver": "copy-before-write", "node-name": "user-cbw",
                                     "file": "vdb-node", "target": "left"})  # fmt: skip
        running.qmp("qom-set", path="/machine/peripheral/vdb", property="drive", value="user-cbw")
        slow_backup(running, "ended", "vda", "t1")
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="ended", status="concluded")
        slow_backup(running, "paused", "vdc", "t2", speed=1)
        running.qmp("job-pause", {"id": "paused"})
        doctor = doctor(running)
        assert doctor.troubles() == [
            ("backing-wrong", one.files[1]),
            ("format-missing", raw.files[1]),
            ("job-paused", "paused"),
            ("job-concluded", "ended"),
            ("node-left", "t1"),
            ("bitmap-inconsistent", "vdb: b0"),
        ]
        doctor.mend()
        running.qmp("block-job-set-speed", {"device": "paused", "speed": 0})
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="paused", status="concluded")
        assert doctor.mend_all() == [
            ("job-concluded", "paused"),
            ("node-left", "t2"),
            ("filter-left", "vdb"),
            ("node-left", "user-cbw"),
            ("node-left", "left"),
        ]
        running.read("vda", 0x77, "5M", 65536)
        with pytest.raises(AssertionError):
            qemu.img("bitmap", "--remove", two.active, "b0")
        running.qmp("quit")
        running.process.wait()
        running.killed = True
    qemu.check_chain(*one.chain)
    assert [one["format"] for one in qemu.chain(raw.active)] == ["qcow2", "qcow2", "raw"]


def failing(event, errno):
    """A file of which the second request of a kind fails, once; QEMU itself reads the first sector."""
    return {"driver": "blkdebug", "image": {"driver": "null-co", "size": 8 * MIB},
            "set-state": [{"event": event, "state": 1, "new_state": 2}],
            "inject-error": [{"event": event, "errno": errno, "once": True, "state": 2}]}  # fmt: skip


def test_a_guest_and_a_job_stopped_by_an_error_go_on(qemu, images, machine, doctor):
    errno, code = (5, "io-error") if qemu is QEMUS[-1] else (28, "disk-full")
    bad = {"driver": "raw", "node-name": "bad", "file": failing("read_aio", errno)}
    with machine(
        "-blockdev", json.dumps(bad), "-device", "virtio-blk-pci,drive=bad,id=vda,rerror=stop,bootindex=0",
        *blockdev("vdb", images("base").active),
    ) as running:  # fmt: skip
        running.qmp("cont")
        running.qmp.wait_event("STOP")
        target = {"driver": "raw", "node-name": "t", "file": failing("write_aio", errno)}
        running.qmp("blockdev-add", target)
        running.qmp("blockdev-backup", {"job-id": "theirs", "device": "vdb-node", "target": "t",
                                        "sync": "full", "on-target-error": "stop"})  # fmt: skip
        running.qmp.wait_event("BLOCK_JOB_ERROR")
        doctor = doctor(running)
        assert doctor.troubles() == [(code, "vda"), ("job-stopped", "theirs")]
        doctor.mend()
        running.qmp.wait_event("JOB_STATUS_CHANGE", id="theirs", status="null")
        assert doctor.mend_all() == [("node-left", "t")]
        assert running.qmp("query-status")["status"] == "running"


async def commit_left(running, **more):
    """Start a commit, and detach from it: its job is slow, and nobody is at work on it."""

    hooks = qmpsnap.Hooks(detach=anyio.Event())
    hooks.detach.set()
    async with running.connect() as vm:
        with pytest.raises(qmpsnap.Detached) as detached:
            await vm.commit("vda", hooks=hooks, **more)
        return detached.value.job_id


@ONE
def test_what_dead_operations_left_is_finished(qemu, images, machine, doctor, tmp_path):
    made = images("base <- s1 <- s2")
    with machine(*blockdev("vda", made.active)) as running:
        doctor = doctor(running)
        job = asyncio.run(commit_left(running, top=made.files[1], base=made.files[0], speed=1))
        running.qmp("block-job-set-speed", {"device": job, "speed": 0})
        assert doctor.mend_all() == [("operation-left", job)]
        assert not Path(made.files[1]).exists()
        doctor.do(f"qmpsnap -s {running.socket} commit vda --keep-overlay")
        assert doctor.mend_all() == [("layer-invalid", "vda"), ("node-left", "vda-node")]
        running.qmp("cont")
        # A checkpoint without its memory, and memory without its checkpoint.
        for name in ("c1", "c2"):
            doctor.do(f"qmpsnap -s {running.socket} checkpoint {name} --mode stop")
        (one,) = tmp_path.glob("*.c1.memory")
        one.unlink()
        (record,) = tmp_path.rglob("moment-c2-*.json")
        record.unlink()
        (two,) = tmp_path.glob("*.c2.memory")
        assert doctor.mend_all() == [("state-missing", "c1"), ("state-unused", str(two))]
        assert not two.exists()


@ONE
def test_names_that_are_lost_and_a_second_writer_are_found(qemu, images, machine, doctor, tmp_path):
    made, other = images(folder="a"), images(folder="b")
    with machine(*drive("vda", made.active), *drive("vdb", other.active)) as running:
        doctor = doctor(running)
        running.write("vdb", 0x55, "6M", 65536)
        Path(made.files[1]).rename(tmp_path / "moved")
        assert doctor.mend_all() == [("layer-moved", made.files[1])]
        Path(other.files[1]).unlink()
        assert doctor.mend_all() == [("layer-moved", other.files[1])]
        running.read("vdb", 0x55, "6M", 65536)
        copy = next(one["inserted"] for one in running.qmp("query-block") if one["device"] == "drive-vdb")
        assert copy["file"] == f"{tmp_path}/b/s2.copy.qcow2"
        with Path(made.files[0]).open("r+b") as base:
            assert doctor.troubles() == []  # that is our process
            with subprocess.Popen(["sleep", "30"], stdin=base) as writer:
                assert doctor.troubles() == [("image-in-use", made.files[0])]
                assert f"process {writer.pid} (sleep" in " ".join(doctor.text.split())
                writer.kill()
    qemu.check_chain(*made.chain)


# -- what is wrong with images -----------------------------------------------------------------------


def moved_directory(qemu, made, folder):
    """The images were moved, with names in their headers that led to the old place."""
    for file in made.files:
        Path(file).rename(folder / Path(file).name)
    return folder / "s2.qcow2", [
        ("backing-missing", f"{folder}/s2.qcow2"),
        ("backing-missing", f"{folder}/s1.qcow2"),
    ]


def format_forgotten(qemu, made, _):
    forget_format(made.files[2])
    return made.active, [("format-missing", made.files[2])]


def format_mistaken(qemu, made, _):
    qemu.img("convert", "-f", "qcow2", "-O", "raw", made.files[0], f"{made.files[0]}.new")
    Path(f"{made.files[0]}.new").replace(made.files[0])
    return made.active, [("format-wrong", made.files[1])]


def bitmap_in_use(qemu, made, folder):
    qemu.img("bitmap", "--add", made.active, "b0")
    with Machine(qemu, folder, *blockdev("vda", made.active)) as running:
        running.write("vda", 7, 0, 65536)
        running.kill()
    return made.active, [("bitmap-inconsistent", "vda: b0")]


def not_closed(qemu, made, _):
    with Path(made.active).open("r+b") as image:
        image.seek(79)
        image.write(b"\1")  # the incompatible feature "dirty"
    return made.active, [("image-damaged", made.active)]


IMAGES = [moved_directory, format_forgotten, format_mistaken, bitmap_in_use, not_closed]


@ONE
@pytest.mark.parametrize("spoil", IMAGES, ids=lambda spoil: spoil.__name__)
def test_images_that_cannot_be_started_from_are_mended(qemu, images, capsys, tmp_path, spoil):
    made = images(folder="a")
    active, expected = spoil(qemu, made, tmp_path)
    doctor = Doctor(capsys, qemu, "-i", f"vda={active}")
    assert doctor.mend_all() == expected
    if spoil is not bitmap_in_use:
        assert qemu.read(active) == content(3)
    assert [one["format"] for one in qemu.chain(active)][:2] == ["qcow2", "qcow2"]


@ONE
def test_images_that_no_command_mends_say_why(qemu, images, capsys, tmp_path):
    made = images("base <- s1")
    outside = images("base", folder="elsewhere").active
    (tmp_path / "line\nfeed\x1b[31m.qcow2").symlink_to(made.active)
    cases = {
        made.files[0]: ("started-below", "vda"),
        qemu.create(tmp_path / "out.qcow2", backing=outside): ("image-refused", "vda"),
        qemu.create(tmp_path / "self.qcow2", backing="./self.qcow2"): ("image-refused", "vda"),
        qemu.create(tmp_path / "json.qcow2", backing="json:{}"): ("image-refused", "vda"),
        qemu.create(tmp_path / "none.qcow2", backing="none.raw", backing_format="raw"):
            ("backing-missing", f"{tmp_path}/none.qcow2"),
        f"{tmp_path}/absent.qcow2": ("image-refused", "vda"),
    }  # fmt: skip
    for image, expected in cases.items():
        doctor = Doctor(capsys, qemu, "-i", f"vda={image}")
        assert (doctor.troubles(), doctor.mending) == ([expected], []), image
        assert "note: " in doctor.text, image
    with Machine(qemu, tmp_path, *blockdev("vda", made.active)) as running:
        doctor = Doctor(capsys, qemu, "-i", f"vda={tmp_path}/line\nfeed\x1b[31m.qcow2")
        ((code, subject),) = doctor.troubles()
        assert (code, subject.startswith(f"{tmp_path}/line\\nfeed")) == ("image-in-use", True)
        assert f"process {running.pid} (" in " ".join(doctor.text.split())
        assert doctor.text.replace("\n", "").isprintable()


# -- what is wrong with a monitor ---------------------------------------------------------------------


@ONE
def test_a_monitor_that_does_not_greet_is_explained(machine, doctor, monkeypatch):
    monkeypatch.setattr("qmpsnap.cli.doctor._GREETING_LIMIT", 0.3)
    with machine() as running:
        doctor = doctor(running)
        with Cli(running).start("events") as holder:
            wait_for(lambda: clients_of(running.socket), "the client")
            assert doctor.mend_all() == [("monitor-held", running.socket)]
            assert holder.wait(10) == 130
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(running.socket)
            ours.recv(10)
            assert doctor.troubles() == [("monitor-held", running.socket)]
            assert doctor.mending == []
        running.process.send_signal(signal.SIGSTOP)
        assert doctor.mend_all() == [("monitor-silent", running.socket)]


@ONE
def test_a_machine_that_ends_meanwhile_is_an_error_and_no_trouble(images, machine, capsys, qemu):
    made = images()
    with machine(*blockdev("vda", made.active)) as running:
        doctor = Doctor(capsys, qemu, "-s", running.socket)
        threading.Timer(0.15, running.kill).start()
        ends = time.monotonic() + 5
        code = 0
        while code in {0, 8} and time.monotonic() < ends:
            code, out, err = doctor._run(*doctor.words, "doctor")
        assert (code in {4, 5}, out) == (True, "")
        assert err.startswith("qmpsnap: ")
        running.kill()
    # What is left is a socket on which nobody listens.
    code, _, err = doctor._run(*doctor.words, "doctor")
    assert (code, "nobody listens" in err or "is QEMU running" in err) == (4, True)
