"""The plugin as its users have it: suites of tests in a pytest of their own."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from integration.known_images import QEMUS
from integration.machines import wait_for
from integration.suites import BARE, NOTHING, Suite

# What each test leaves behind, and finds nothing of: a file in memory, a block on the disk, a snapshot.
TRACES = """
import multiprocessing
import os
import signal
import time
import pytest
import qmpsnap

READ = "ls /run; dd if=/dev/vda bs=4 count=1 2> /dev/null"

def write(number):
    return f"touch /run/trace{number}; echo -n x{number:03} | dd of=/dev/vda conv=notrunc 2> /dev/null; sync"

def names(moments):
    return [moment.name for moment in moments.moments if moment.name[:8] != "qmpsnap-"]
"""

# COUNT tests; the plain ones take turns with those that await.
ALIKE = (
    TRACES
    + """
@pytest.mark.parametrize("number", range(0, COUNT, 2))
def test_plain(vm, guest, number):
    assert guest.run(READ) == "base"
    guest.run(write(number))
    vm.snapshot("mine")
    assert names(vm.moments()) == ["mine"]

@pytest.mark.parametrize("number", range(1, COUNT, 2))
async def test_async(vm, guest, number):
    assert await guest.run(READ) == "base"
    await guest.run(write(number))
    await vm.snapshot("mine")
    assert names(await vm.moments()) == ["mine"]
"""
)

# Between the others: one that kills its QEMU, one that keeps the state of the one before, and one that boots.
TURNS = (
    ALIKE
    + """
used = []

@pytest.fixture(autouse=True)
def noted(request, vm):
    used.append((request.node.name, vm.pid))

def test_kills_it(vm):
    os.kill(vm.pid, signal.SIGKILL)

@pytest.mark.qmpsnap(reset="none")
def test_stays(vm):
    *_, before, now = used
    assert before[0] == "test_kills_it" or before[1] == now[1]

@pytest.mark.qmpsnap(reset="boot")
def test_boots(guest):
    assert guest.run(READ) == "base"
    guest.run(write(99))

def test_two_qemus_were_used(vm):
    assert len({pid for _, pid in used}) > 1
"""
)

# The second one cannot have the same port of the host.
PORT = """
import contextlib, os, pytest, qmpsnap, socket

def free_ports():  # below those that the kernel gives away: nobody else is given it until QEMU takes it
    for number in range(12000 + os.getpid() % 8000, 32000):
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", number))
            yield number

port = next(free_ports())

@pytest.fixture(scope="session")
def qmpsnap_machine():
    nic = qmpsnap.Nic(f"user,hostfwd=tcp:127.0.0.1:{port}-:22")
    return qmpsnap.Machine(memory_mib=16, disks=[qmpsnap.MachineDisk(name="vda", file="BASE")], nics=[nic])

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.mark.parametrize("number", range(6))
def test_port_leads_to_the_machine(vm, number):
    assert number < 3 or vm.status().running
    socket.create_connection(("127.0.0.1", port)).close()
    vm.snapshot("mine")
"""

# Each leaves its machine in another state; `first_state` of the next one would see it.
ROUGH = (
    TRACES
    + """
@pytest.fixture(autouse=True)
def first_state(vm, guest, qmpsnap_directory):
    console = qmpsnap_directory / "console.log"
    assert "runs" in console.read_text() and "TRACE" not in console.read_text()
    assert guest.run(READ) == "base"
    assert vm.status().running
    guest.run(write(1))
    guest.run("echo TRACE > /dev/ttyS0")
    while "TRACE" not in console.read_text():  # the kernel prints it when the command may have ended
        time.sleep(0.05)

def test_pauses_it(vm):
    vm.stop()

def test_is_skipped_in_a_block(vm):
    with vm.events(lambda event: None):
        pytest.skip("no error of the machine")

def asked_in_vain(vm):
    with pytest.raises(qmpsnap.Unsupported, match="not the one that pytest runs in"):
        vm.status()

def test_has_another_process_ask(vm):
    other = multiprocessing.get_context("fork").Process(target=asked_in_vain, args=(vm,), daemon=True)
    other.start()
    other.join(60)
    assert other.exitcode == 0

def test_hangs_it(guest):
    guest.run("(usleep 100000; kill -STOP $PPID) > /dev/null 2>&1 &")

def test_leaves_a_job(vm):
    vm.execute("blockdev-add", {"driver": "null-co", "node-name": "lone", "size": 64 << 20})
    root = vm.graph().disks["vda"].root
    job = {"job-id": "j", "device": root, "target": "lone", "sync": "full", "speed": 1000}
    vm.execute("blockdev-mirror", job)

def test_takes_snapshots_of_all_kinds(vm):
    vm.snapshot("a")
    vm.snapshot("b")
    vm.snapshot("inside", inside=True)
    vm.checkpoint("c", mode="in-place")
    vm.revert("b")

def test_fills_the_disk(guest):
    guest.run("dd if=/dev/zero of=/dev/vda bs=1M 2> /dev/null; true", limit=60)

def test_cannot_commit_into_the_image(vm):
    with pytest.raises(Exception, match='Failed to get "write" lock'):
        vm.commit("vda")

@pytest.mark.anyio
async def test_runs_under_anyio(vm, guest):
    await guest.run(write(2))
    assert "vda" in (await vm.graph()).disks

@pytest.mark.asyncio
async def test_runs_under_pytest_asyncio(vm, taken):
    assert taken is vm
    assert names(await vm.moments()) == ["taken"]

@pytest.fixture
def taken(asynchronously_taken):
    return asynchronously_taken
"""
)
STRICT = """
import pytest_asyncio

@pytest_asyncio.fixture
async def asynchronously_taken(vm):
    await vm.snapshot("taken")
    yield vm
    assert (await vm.status()).running
"""

# After each of these a new QEMU has to boot.
WORSE = (
    TRACES
    + """
@pytest.fixture(autouse=True)
def first_state(vm, guest):
    assert guest.run(READ) == "base"
    guest.run(write(1))

@pytest.mark.qmpsnap(reset="clone")
@pytest.mark.parametrize("number", range(2))
async def test_is_a_clone(vm, number):
    assert [layer.file[-9:] for layer in (await vm.graph()).disks["vda"].layers][-1] == "ase.qcow2"
    await vm.snapshot("mine")
    assert names(await vm.moments()) == ["mine"]

def test_kills_it(vm):
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="lost the test's machine "):
        vm.graph()

def test_adds_an_object(vm):
    vm.execute("object-add", {"qom-type": "iothread", "id": "io9"})

def test_fails(vm):
    vm.snapshot("seen")
    assert vm.status().running is None
"""
)

WAITS = """
def test_waits(vm):
    print("begun", vm.pid, flush=True)
    time.sleep(60)
"""
NEVER = """
@pytest.fixture(scope="session")
def qmpsnap_ready():
    return "login:"

def test_first(vm): ...
def test_second(guest): ...
"""

# A kernel alone: it finds no root, and panics.
KERNEL = """
import qmpsnap, pytest
from qmpsnap.testing.machine import find_guest_image

@pytest.fixture(scope="session")
def qmpsnap_machine():
    kernel = find_guest_image().kernel
    return qmpsnap.Machine(memory_mib=128, kernel=kernel, append="console=ttyS0 quiet no_timer_check")

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.fixture(scope="session")
def qmpsnap_ready():
    return "login:"

def test_first(vm): ...
def test_second(vm): ...
"""
PANICS = """
import pytest

CRASH = "echo c > /proc/sysrq-trigger; sleep 600"

@pytest.mark.parametrize("number", range(2))
def test_plain(guest, number):
    guest.run(CRASH, limit=600)

async def test_async(guest):
    await guest.run(CRASH, limit=600)

def test_after(guest):
    assert guest.run("echo all right") == "all right"
"""

GOES_ON = """
@pytest.mark.qmpsnap(reset="none")
@pytest.mark.parametrize("number", range(3))
def test_goes_on(vm, number):
    assert [moment.name for moment in vm.moments().moments] == [f"s{earlier}" for earlier in range(number)]
    vm.snapshot(f"s{number}")
"""
LEAVES = """
import subprocess, sys

CLIENT = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    "print(1, flush=True); s.makefile().read()"
)

def test_leaves_a_client(qmpsnap_socket):
    words = [sys.executable, "-c", CLIENT, qmpsnap_socket]
    assert subprocess.Popen(words, stdout=subprocess.PIPE).stdout.read(1) == b"1"

@pytest.mark.qmpsnap(reset="none")
def test_goes_on_beside_it(vm):
    assert vm.status().running

def test_gets_a_machine_of_its_own(vm):
    vm.revert("nope")  # the last line that the report shows
"""
MANY = """
import contextlib, os, pathlib, pytest, qmpsnap

pytestmark = pytest.mark.qmpsnap(reset="boot")

@pytest.fixture(params=[16, 17, 18, 19, 20, 16])
def qmpsnap_machine(request):
    return qmpsnap.Machine(memory_mib=request.param)

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

def running():
    count = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            line = path.read_text(errors="replace")
            count += os.environ["TMPDIR"] in line and "qemu-system" in line
    return count

def test_machine(vm):
    assert vm.status().running
    assert running() <= 4
"""


@pytest.fixture
def suite(qemu, tmp_path, temporary):
    return Suite(qemu, tmp_path, temporary)


@pytest.fixture
def one_suite(tmp_path, temporary):
    """On one QEMU: what differs between them is in the other tests."""
    return Suite(QEMUS[0], tmp_path, temporary)


def test_next_test_finds_the_first_state_whatever_one_did(suite):
    ended = suite.run(ROUGH + STRICT)
    assert (ended.code, ended.counts["passed"], ended.counts["skipped"]) == (0, 9, 1)
    assert re.search(r"reset: memory, a trial took \S+ s; 1 boot\(s\), 9 reset\(s\)", ended.out)
    assert suite.left() == NOTHING


def test_fifty_tests_of_two_workers_see_nothing_of_each_other(one_suite):
    ended = one_suite.run(ALIKE.replace("COUNT", "50"), "-n", "2", "-o", "asyncio_mode=auto")
    assert (ended.code, ended.counts["passed"]) == (0, 50)
    assert len(re.findall(r"reset: memory, a trial took \S+ s; 1 boot\(s\)", ended.out)) == 2
    assert one_suite.left() == NOTHING


def test_two_qemus_in_turn_see_nothing_of_each_other(suite, times):
    count = len(times(36))  # or 12: in the order of so many, no boot follows the test that kills its QEMU
    turns = TURNS.replace("COUNT", str(count))
    ended = suite.run(turns, "--qmpsnap-spare=yes", "-o", "asyncio_mode=auto")
    assert (ended.code, ended.counts["passed"]) == (0, count + 4)
    assert "\ntwo QEMUs in turn: one is reset while a test uses the other\n" in ended.out
    assert re.search(r"booted anew after test_it.py::test_(kills_it|stays): it lost the machine: ", ended.out)
    assert suite.left() == NOTHING


@pytest.mark.parametrize("reset", ["memory", "clone"])
def test_port_of_the_host_is_forwarded_and_a_second_qemu_that_cannot_have_it_is_given_up(one_suite, reset):
    ended = one_suite.run(PORT, "--qmpsnap-spare=yes", f"--qmpsnap-reset={reset}")
    assert (ended.code, ended.counts["passed"]) == (0, 6)
    counts = [r"1 boot\(s\), 5"]
    if reset == "clone":
        # The second QEMU may take the port while one clone has ended and the next has not begun.
        counts.append(r"2 boot\(s\), 4")
    assert re.search(rf"({'|'.join(counts)}) reset\(s\)", ended.out)
    assert re.search(r"\none QEMU again: .*Could not set up host forwarding rule", ended.out)
    assert one_suite.left() == NOTHING


def test_machine_that_cannot_be_put_back_is_booted_anew_and_a_failure_is_kept(one_suite):
    artifacts = one_suite.folder / "kept"
    kept = f"--qmpsnap-artifacts={artifacts}", "--qmpsnap-keep"
    ended = one_suite.run(WORSE, *kept, "-o", "asyncio_mode=auto")
    assert (ended.counts["failed"], ended.counts["passed"]) == (1, 4)
    assert "test_adds_an_object: the machine differs after the reset: objects (new: io9)\n" in ended.out
    lost = "booted anew after test_it.py::test_kills_it: it lost the machine: "
    assert lost in ended.out
    (folder,) = artifacts.iterdir()
    assert folder.name == "test_it.py-test_fails"
    assert f"{folder}\nhas chain-after, chain-before, console.log, " in ended.out
    assert (folder / "chain-after").read_text().endswith(" <- [base.seen*]\n")
    assert "seen" not in (folder / "chain-before").read_text()
    assert "init runs" in (folder / "console.log").read_text()
    assert (folder / "state").read_text() == "running\n"
    assert "blockdev-snapshot-sync" in (folder / "qmp-1.jsonl").read_text()
    top = json.loads(one_suite.qemu.img("info", "--output=json", folder / "overlays" / "base.seen.qcow2"))
    assert Path(folder / "overlays" / top["backing-filename"]).exists()
    assert one_suite.left() == NOTHING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("reset", ["memory", "clone"])
def test_nothing_is_left_when_pytest_is_ended_by_a_signal(one_suite, number, reset):
    options = f"--qmpsnap-reset={reset}", "--qmpsnap-spare=yes"
    with one_suite.start(BARE + WAITS, "-s", *options) as process:
        for line in process.stdout:
            if "begun " in line:
                break
        assert one_suite.left()[1], "the machine has no directory"
        process.send_signal(number)
        process.communicate(timeout=60)
    wait_for(lambda: one_suite.left() == NOTHING, "the end of all that was started")


def test_guest_that_is_never_ready_fails_the_first_test_slowly_and_the_others_at_once(one_suite):
    ended = one_suite.run(BARE + NEVER, "--qmpsnap-boot-limit=1")
    assert ended.counts == {"errors": 2} | {word: n for word, n in ended.counts.items() if word != "errors"}
    assert "the guest was not ready after 1 s" in ended.out
    assert "the machine could not be booted before: the guest was not ready after 1 s" in ended.out
    assert "to its console" in ended.out
    assert one_suite.left() == NOTHING


def test_guest_that_panics_at_boot_ends_the_wait_and_says_why(suite):
    ended = suite.run(KERNEL, "--qmpsnap-boot-limit=600")
    assert ended.counts == {"errors": 2} | {word: n for word, n in ended.counts.items() if word != "errors"}
    assert re.search(r"E .*GuestFailed: the guest has panicked during the boot\n", ended.out)
    assert re.search(r"E .*Kernel panic - not syncing: VFS: Unable to mount root fs", ended.out)
    assert "the machine could not be booted before: the guest has panicked during the boot" in ended.out
    assert suite.left() == NOTHING


def test_guest_that_panics_in_a_test_ends_its_command_and_the_next_test_gets_the_first_state(suite):
    ended = suite.run(PANICS, "-o", "asyncio_mode=auto")
    assert (ended.counts["failed"], ended.counts["passed"]) == (3, 1)
    failed = r"GuestFailed: the guest has panicked during 'echo c > /proc/sysrq-trigger; sleep 600'"
    assert len(re.findall(rf"\nE .*{failed}", ended.out)) == 3
    assert re.search(r"E .*Kernel panic - not syncing: sysrq triggered crash", ended.out)
    assert re.search(r"1 boot\(s\), 3 reset\(s\)", ended.out)
    assert suite.left() == NOTHING


def test_no_more_than_four_machines_run_at_once(one_suite):
    ended = one_suite.run(MANY)
    assert (ended.code, ended.counts["passed"]) == (0, 6)
    assert ended.out.count("1 boot(s), 0 reset(s)") == 6
    assert one_suite.left() == NOTHING


def test_machine_stays_as_it_is_when_nothing_is_to_be_put_back(one_suite):
    ended = one_suite.run(BARE + GOES_ON)
    assert (ended.code, ended.counts["passed"]) == (0, 3)
    assert one_suite.left() == NOTHING


def test_client_that_a_test_leaves_keeps_no_machine_from_the_next_and_an_error_ends_at_the_test(one_suite):
    ended = one_suite.run(BARE + LEAVES, "--qmpsnap-reset=memory")
    assert (ended.counts["failed"], ended.counts["passed"]) == (1, 2)
    after = "after test_it.py::test_goes_on_beside_it"
    assert re.search(rf"{after}: its client is still connected: process \d+ ", ended.out)
    shown = ended.out.partition("_ test_gets_a_machine_of_its_own _")[2]
    assert re.search(r"the report shows\n(\s+\^+\n)?(E .*\n)+\n\S*test_it.py:\d+: NotFound\n", shown)
    wait_for(lambda: one_suite.left() == NOTHING, "the end of the client, whose QEMU has ended")


def test_missing_qemu_is_an_error_that_names_the_way_out(one_suite):
    ended = one_suite.run(BARE + WAITS, "--qmpsnap-qemu=/nowhere/qemu")
    assert ended.counts["error"] == 1
    lines = ("there is no QEMU '/nowhere/qemu'", "nothing was changed", "name a QEMU with --qmpsnap-qemu")
    shown = r"_\n\n" + "".join(rf"E .*{line}\n" for line in lines) + r"\n"
    assert re.search(shown, ended.out)  # and nothing of the plugin's source
