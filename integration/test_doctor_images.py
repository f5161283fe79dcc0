"""Images that cannot be started from, and monitors that do not greet: found, and mended as printed."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from integration.cli import Cli
from integration.doctoring import Doctor, forget_format
from integration.known_images import QEMUS, content
from integration.machines import Machine, blockdev, wait_for
from qmpsnap.run.proc import is_stopped
from qmpsnap.run.sockets import clients_of

ONE = pytest.mark.parametrize("qemu", QEMUS[:1], indirect=True, ids=[QEMUS[0].short])


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


def format_raw(qemu, made, _):
    """An overlay calls a qcow2 image raw: the guest would see its header, and nothing from beneath it."""
    qemu.img("rebase", "-u", "-f", "qcow2", "-b", made.files[1], "-F", "raw", made.active)
    return made.active, [("format-wrong", made.active)]


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


IMAGES = [moved_directory, format_forgotten, format_mistaken, format_raw, bitmap_in_use, not_closed]


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
    with machine() as running:
        doctor = doctor(running)
        with Cli(running).start("events") as holder:
            wait_for(lambda: clients_of(running.socket), "the client")
            with monkeypatch.context() as context:
                context.setattr("qmpsnap.cli.doctor._GREETING_LIMIT", 0.3)
                assert doctor.troubles() == [("monitor-held", running.socket)]
            doctor.mend()
            assert holder.wait(60) == 130
            assert doctor.troubles() == []
        monkeypatch.setattr("qmpsnap.cli.doctor._GREETING_LIMIT", 0.3)
        with socket.socket(socket.AF_UNIX) as ours:
            ours.connect(running.socket)
            ours.recv(10)
            assert doctor.troubles() == [("monitor-held", running.socket)]
            assert doctor.mending == []


@ONE
def test_a_qemu_that_a_signal_stopped_is_continued(machine, doctor, monkeypatch):
    monkeypatch.setattr("qmpsnap.cli.doctor._GREETING_LIMIT", 0.3)
    with machine() as running:
        doctor = doctor(running)
        running.freeze()
        assert doctor.troubles() == [("monitor-silent", running.socket)]
        doctor.mend()
        # No second look: QEMU 7.2 may keep serving the connections that were given up meanwhile.
        assert not is_stopped(running.pid)


@ONE
def test_a_machine_that_ends_meanwhile_is_an_error_and_no_trouble(images, machine, capsys, qemu):
    made = images()
    with machine(*blockdev("vda", made.active)) as running:
        doctor = Doctor(capsys, qemu, "-s", running.socket)
        threading.Timer(0.15, running.kill).start()
        ends = time.monotonic() + 60
        code = 0
        while code in {0, 8} and time.monotonic() < ends:
            code, out, err = doctor._run(*doctor.words, "doctor")
        assert (code in {4, 5}, out) == (True, "")
        assert err.startswith("qmpsnap: ")
        running.kill()
    # What is left is a socket on which nobody listens.
    code, _, err = doctor._run(*doctor.words, "doctor")
    assert (code, "nobody listens" in err or "is QEMU running" in err) == (4, True)
