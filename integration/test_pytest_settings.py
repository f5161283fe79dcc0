"""What a test sets in QEMU or leaves in its directory is not there for the next one."""

from __future__ import annotations

import pytest

from integration.known_images import QEMUS
from integration.suites import NOTHING, Suite

# A machine without a guest. Each test leaves something else, and finds nothing of what the others have left.
MACHINE = """
import os, pytest, qmpsnap

@pytest.fixture(scope="session")
def qmpsnap_machine():
    disk = qmpsnap.MachineDisk(name="vda", file="BASE")
    return qmpsnap.Machine(memory_mib=16, disks=[disk], nics=[qmpsnap.Nic("user")])

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}
"""
UNDONE = """
@pytest.fixture(autouse=True)
def directory(qmpsnap_directory):
    console = qmpsnap_directory / "console.log"
    assert "TRACE" not in console.read_text()
    with console.open("a") as log:
        log.write("TRACE")
    return qmpsnap_directory

@pytest.mark.parametrize("number", range(2))
def test_serves_a_disk(vm, directory, number):
    vm.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(directory / "nbd")}}})
    node = vm.graph().disks["vda"].active.node
    vm.execute("block-export-add", {"type": "nbd", "id": "e", "node-name": node})

@pytest.mark.parametrize("number", range(2))
def test_leaves_files_of_all_kinds(directory, number):
    (directory / "results" / "more").mkdir(parents=True)
    (directory / "results" / "more" / "file").touch()
    (directory / "link").symlink_to("/")
    os.mkfifo(directory / "fifo")
    os.mkfifo(directory / "records" / "fifo")

def test_is_the_last_one(vm, directory):
    left = {path.name for path in directory.rglob("*")}
    assert not left & {"nbd", "results", "more", "file", "link", "fifo"}
    assert "vda.qcow2" in left
"""
BOOTED = """
def ask(vm, line):
    return vm.execute("human-monitor-command", {"command-line": line})

def limit(vm):
    block, = (block for block in vm.execute("query-block") if "vda" in block.get("qdev", ""))
    return block["qdev"], block["inserted"]["bps"]

@pytest.fixture(autouse=True)
def first_state(vm):
    assert limit(vm)[1] == 0
    assert vm.execute("query-migrate-parameters")["max-bandwidth"] != 12345
    assert not any(part["state"] for part in vm.execute("query-migrate-capabilities"))
    assert "more:" not in ask(vm, "info network")
    assert "HOST_FORWARD" not in ask(vm, "info usernet")

def test_throttles_a_disk(vm):
    others = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    vm.execute("block_set_io_throttle", {"id": limit(vm)[0], "bps": 1000, **others})

def test_sets_a_parameter_and_a_capability_of_migration(vm):
    vm.execute("migrate-set-parameters", {"max-bandwidth": 12345})
    vm.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})

def test_adds_a_network(vm):
    vm.execute("netdev_add", {"type": "user", "id": "more"})

def test_forwards_a_port(vm):
    ask(vm, "hostfwd_add net0 tcp:127.0.0.1:0-:22")
    assert "HOST_FORWARD" in ask(vm, "info usernet")

def test_sets_what_a_reset_does(vm):
    vm.execute("set-action", {"reboot": "shutdown"})

def test_reboots(vm):
    vm.execute("system_reset")
    assert vm.status().running
"""
REASONS = [
    "test_throttles_a_disk: the machine differs after the reset: I/O limits (new: /machine/",
    "migration: the machine differs after the reset: migration parameters (new: max-bandwidth=12345; gone: ",
    "migration capabilities (new: events)",
    "test_adds_a_network: the machine differs after the reset: networks (new: more)",
    "test_forwards_a_port: the machine differs after the reset: forwarded ports (new: TCP 127.0.0.1:",
    "test_sets_what_a_reset_does: it sent set-action, which no reset undoes",
]

# All paths count from where pytest was started, also once a test has gone elsewhere.
RELATIVE = """
import pytest, qmpsnap

@pytest.fixture(scope="session")
def qmpsnap_machine():
    disk = qmpsnap.MachineDisk(name="vda", file="base.qcow2")
    firmware = ["-fw_cfg", "name=opt/x,file=tests/conftest.py"]
    return qmpsnap.Machine(memory_mib=16, disks=[disk], arguments=firmware)

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

@pytest.mark.qmpsnap(reset="boot")
@pytest.mark.parametrize("number", range(2))
def test_boots(vm, number):
    assert number == 0

@pytest.fixture
def checked(vm):
    yield
    assert vm.graph().disks == {}

def test_is_checked_at_its_end_and_the_last_one(checked):
    pass
"""

LINK = """
import pytest, qmpsnap
from dataclasses import replace
from qmpsnap.testing.machine import guest_machine

@pytest.fixture(scope="session")
def qmpsnap_machine():
    return replace(guest_machine(), nics=[qmpsnap.Nic("user")])

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.mark.parametrize("cable", ["net0", "nic0", "net0"])
def test_pulls_the_cable(vm, guest, cable):
    guest.run("ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ping -c 1 -W 30 10.0.2.2")
    vm.execute("set_link", {"name": cable, "up": False})
"""


@pytest.fixture
def suite(qemu, tmp_path, temporary):
    return Suite(qemu, tmp_path, temporary)


def test_files_servers_and_logs_of_a_test_are_gone_for_the_next_one(suite):
    ended = suite.run(MACHINE + UNDONE, "--qmpsnap-reset=memory")
    assert (ended.code, ended.counts["passed"]) == (0, 5)
    assert "1 boot(s), 4 reset(s)" in ended.out
    assert suite.left() == NOTHING


def test_machine_is_booted_anew_after_a_test_whose_settings_no_reset_undoes(suite):
    ended = suite.run(MACHINE + BOOTED, "--qmpsnap-reset=memory")
    assert (ended.code, ended.counts["passed"]) == (0, 6)
    assert "6 boot(s), 0 reset(s)" in ended.out
    assert [reason for reason in REASONS if reason not in ended.out] == []
    assert suite.left() == NOTHING


def test_paths_are_found_and_failures_are_kept_where_pytest_was_started(tmp_path, temporary):
    suite = Suite(QEMUS[0], tmp_path, temporary)
    ended = suite.run(RELATIVE, "--qmpsnap-artifacts=kept", cwd=suite.folder)
    assert (ended.code, ended.counts) == (1, {"failed": 1, "passed": 2, "error": 1})
    kept = suite.folder / "kept"
    assert {folder.name: (folder / "state").read_text() for folder in kept.iterdir()} == {
        "test_it.py-test_boots-1": "running\n",
        "test_it.py-test_is_checked_at_its_end_and_the_last_one": "running\n",
    }
    assert suite.left() == NOTHING


def test_cable_that_a_test_pulls_is_back_for_the_next_one(tmp_path, temporary):
    suite = Suite(QEMUS[0], tmp_path, temporary)
    ended = suite.run(LINK, "--qmpsnap-reset=memory")
    assert (ended.code, ended.counts["passed"]) == (0, 3)
    assert "1 boot(s), 2 reset(s)" in ended.out
    assert suite.left() == NOTHING
