"""What a test-suite may give as its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from qmpsnap.errors import BadArgument, Unsupported
from qmpsnap.model.machine_description import Machine, MachineDisk, Nic
from qmpsnap.model.start import Start
from qmpsnap.testing.shared import source
from qmpsnap.testing.shared.source import Overrides, find_qemu, source_of
from tests.each import each


@pytest.fixture
def qemu(tmp_path):
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program


def test_machine_names_its_disks(qemu):
    disks = [MachineDisk(name="vda", file="/i/a.qcow2"), MachineDisk(name="vdb", file="/i/b", format="raw")]
    found = source_of(
        Machine(qemu="nowhere", disks=disks), {}, "login:", overrides=Overrides(qemu=str(qemu.parent))
    )
    assert found.disks == {"vda": "/i/a.qcow2", "vdb": "/i/b"}
    assert found.formats == {"vda": "qcow2", "vdb": "raw"}
    assert found.ready == "login:"


def test_launcher_s_disks_are_named_beside_it():
    def launcher(start): ...

    found = source_of(launcher, {"vda": "/i/a.qcow2", "vdb": ("/i/b", "raw")}, None, overrides=Overrides())
    assert found.launcher is launcher
    assert (found.disks, found.formats) == (
        {"vda": "/i/a.qcow2", "vdb": "/i/b"},
        {"vda": "qcow2", "vdb": "raw"},
    )


@each(
    ("machine", "ready", "repeatable"),
    [
        (Machine(), None, True),
        (Machine(), "login:", True),
        (Machine(), len, False),
        (Machine(disks=[MachineDisk(name="vda", file="/i/a.qcow2")], nics=[Nic()]), None, True),
        (Machine(nics=[Nic("user,hostfwd=tcp::2222-:22")]), None, False),
        (Machine(nics=[Nic("socket,mcast=230.0.0.1:4000")]), None, False),
        (Machine(arguments=["-serial", "file:/tmp/console"]), None, False),
        (["qemu-system-x86_64"], None, False),
        (len, None, False),
    ],
)
def test_two_run_at_once_only_if_they_name_nothing_that_both_would_use(qemu, machine, ready, repeatable):
    assert source_of(machine, {}, ready, overrides=Overrides(qemu=str(qemu))).repeatable is repeatable


@each(
    ("machine", "disks", "ready", "words"),
    [
        (Machine(), {"vda": "/a.qcow2"}, None, "a Machine names its own disks"),
        (7, {}, None, "return a qmpsnap.Machine, a command line, or a launcher"),
        ("qemu-system-x86_64", {}, None, "return a qmpsnap.Machine, a command line, or a launcher"),
        (len, {"vda": 7}, None, "file"),
        (len, {}, 7, "return text, a coroutine function, or None"),
    ],
)
def test_anything_else_is_refused(machine, disks, ready, words):
    with pytest.raises(BadArgument, match=words):
        source_of(machine, disks, ready, overrides=Overrides())


COMMAND_LINE = ["qemu-system-x86_64", "-drive", "file=/i/a.qcow2,if=virtio", "-append", ""]


def test_command_line_has_the_disks_that_are_named_beside_it():
    found = source_of(COMMAND_LINE, {"virtio0": "/i/a.qcow2"}, None, overrides=Overrides())
    assert found.disks == {"virtio0": "/i/a.qcow2"}


@each(
    ("disks", "message", "hint"),
    [
        (
            {},
            "two QEMUs would write to the same image of the disk 'virtio0', which gets no other one",
            (
                "name an image for it in qmpsnap_disks, or return a launcher from qmpsnap_machine; a disk "
                "that need not keep what is written, such as the flash of a firmware, can have readonly=on "
                "or snapshot=on"
            ),
        ),
        (
            {"vda": "/i/a.qcow2"},
            "no argument of QEMU's command line is recognised as the disk 'vda'; recognised are virtio0",
            (
                "a device on the command line needs this id; for a disk plugged in later, return a launcher "
                "from qmpsnap_machine"
            ),
        ),
    ],
)
def test_command_line_with_other_disks_than_are_named_is_refused(disks, message, hint):
    with pytest.raises(Unsupported) as caught:
        source_of(COMMAND_LINE, disks, None, overrides=Overrides())
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_overrides_are_applied_and_nothing_else(qemu):
    machine = Machine(qemu=str(qemu), accel="tcg", memory_mib=512, cpus=2)
    assert Overrides().of(machine) == machine
    changed = Overrides(accel="kvm", memory_mib=64).of(machine)
    assert changed == Machine(qemu=str(qemu), accel="kvm", memory_mib=64, cpus=2)


@each(
    ("given", "message"),
    [
        ("/nowhere/qemu", "there is no QEMU '/nowhere/qemu'"),
        ("/dev", "there is no qemu-system-x86_64 in '/dev'"),
    ],
)
def test_missing_qemu_names_the_way_out(given, message):
    with pytest.raises(Unsupported, match=message) as caught:
        find_qemu(given)
    assert "--qmpsnap-qemu" in caught.value.hint


@each("given", ["bin", "bin/qemu-system-x86_64", "./bin"])
def test_relative_path_of_qemu_counts_from_the_directory_where_pytest_was_started(qemu, given):
    assert Path(find_qemu(given, cwd=str(qemu.parents[1]))) == qemu


def test_described_machine_has_its_console_and_ports_in_the_directory(monkeypatch):
    started = []
    monkeypatch.setattr(source, "launch", lambda argv, *, log, cwd: started.append((argv, str(log), cwd)))
    machine = Machine(qemu="/q", accel="tcg", ports=("org.x.0",))
    source.launcher_of_machine(machine, cwd="/suite")(Start(directory="/d,1", monitors=("/d,1/qmp0",)))
    ((argv, log, cwd),) = started
    assert (log, cwd) == ("/d,1/qemu.log", "/suite")
    assert "file,id=console,path=/d,,1/console.log,append=on" in argv
    assert "socket,id=port0,path=/d,,1/org.x.0,server=on,wait=off" in argv
    assert "unix:/d,,1/qmp0,server=on,wait=off" in argv
