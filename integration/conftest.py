"""Fixtures of all integration tests.

    qemu        Qemu of the matrix (`.version .directory .system .img() .create() .read() .check()`), one
                test each; `--qemu 7.2` or QMPSNAP_QEMU=7.2 (several: with commas) takes these alone
    everything  whether `--all` was given: nothing is sampled
    times       times(10): a range, for what is the same each time: 10 times on the run's first QEMU and with
                `--all`, a third of that on the others
    machine     machine("vda", "base <- s1") or machine(*qemu_arguments): a Machine to be entered by
                `with`; it has `.vm` arguments, `.write() .read() .qmp() .connect()`
    images      images("base <- s1 <- s2", folder=...): images of known content (known_images.make_images)
    doctor      doctor(machine): its Doctor (doctoring.py), which finds troubles and mends them as printed
    small       small(size): a new tmpfs of that size, where we may mount; gone with the test
    temporary   a new directory whose path is short enough for sockets; gone with the test
    leftovers   leftovers.allow(FILE): a record that the test leaves on purpose

A test that is marked `one_qemu` runs on one of the QEMUs, and the module's next such test, or next variant of
it, on the next QEMU: each QEMU takes its share. Marked is what hardly depends on the QEMU: texts, exit codes,
our own files and records, the guest itself. With `--all` it runs on every QEMU.

After every test, whether it uses these or not, nothing may be left: no process that we started, no
task, no descriptor, no temporary file and no intent record in its tmp_path. A Machine checks at its
end that QEMU has no job and no node of ours.

What tests depend on beside that (environment, umask, signals) is set for all: `tests/environment.py`.

The helpers behind the fixtures are in machines.py and known_images.py; see there for their arguments.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from integration import forking
from integration.doctoring import Doctor
from integration.known_images import QEMUS, make_images
from integration.machines import Leftovers, Machine
from integration.sampling import sampled_out
from tests.environment import freeze, settle

settle()


def pytest_addoption(parser):
    parser.addoption(
        "--qemu", default=os.environ.get("QMPSNAP_QEMU", ""), help="versions to test, as 7.2,10.0"
    )
    parser.addoption("--all", action="store_true", help="every point and site; else the sampled ones")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "one_qemu: runs on one QEMU, which is in turn another one; see conftest.py"
    )


def pytest_collection_modifyitems(config, items):
    ours = [
        item for item in items if Path(__file__).parent in item.path.parents and hasattr(item, "callspec")
    ]
    dropped = _unwanted(config, ours)
    if not config.getoption("--all"):
        dropped |= sampled_out(
            (item.path, _without_qemu(item), item)
            for item in ours
            if item not in dropped and item.get_closest_marker("one_qemu")
        )
    if dropped:
        config.hook.pytest_deselected(items=[item for item in items if item in dropped])
        items[:] = [item for item in items if item not in dropped]


def pytest_collection_finish():
    freeze()


def _unwanted(config, items):
    """The tests on other QEMUs than those that `--qemu` takes."""
    wanted = [version for version in config.getoption("--qemu").split(",") if version]
    missing = [version for version in wanted if not any(q.version.startswith(version) for q in QEMUS)]
    if missing:
        raise pytest.UsageError(f"scripts/qemu-matrix has no QEMU {', '.join(missing)}")
    unwanted = {name for qemu in QEMUS if qemu not in _taken(config) for name in (qemu.version, qemu.short)}
    return {item for item in items if unwanted & set(item.callspec.id.split("-"))}


def _taken(config):
    """The QEMUs that `--qemu` takes: all of them, if it names none."""
    wanted = [version for version in config.getoption("--qemu").split(",") if version]
    return [
        qemu
        for qemu in QEMUS
        if not wanted
        or any(qemu.version == version or qemu.version.startswith(f"{version}.") for version in wanted)
    ]


def _without_qemu(item):
    versions = {name for qemu in QEMUS for name in (qemu.version, qemu.short)}
    return item.originalname, tuple(part for part in item.callspec.id.split("-") if part not in versions)


@pytest.fixture(params=QEMUS, ids=[qemu.short for qemu in QEMUS])
def qemu(request):
    return request.param


@pytest.fixture
def everything(request):
    return request.config.getoption("--all")


@pytest.fixture
def times(request, qemu, everything):
    all_of_them = everything or qemu == _taken(request.config)[0]
    return lambda number: range(number if all_of_them else -(-number // 3))


@pytest.fixture
def images(qemu, tmp_path):
    def make(drawing="base <- s1 <- s2", *, folder=None, **options):
        place = tmp_path if folder is None else tmp_path / folder
        place.mkdir(exist_ok=True)
        return make_images(qemu, place, drawing, **options)

    return make


@pytest.fixture
def machine(qemu, tmp_path):
    def make(*arguments, **options):
        return Machine(qemu, tmp_path, *arguments, **options)

    return make


@pytest.fixture
def doctor(capsys, qemu):
    def make(machine):
        return Doctor(capsys, qemu, "-s", machine.socket)

    return make


@pytest.fixture(params=["disks", "in-place"])
def kind(request):
    """What is gone back to in place (`states.take`): disks alone, or with the memory in a store."""
    return request.param


@pytest.fixture
def small(tmp_path):
    """Make tmpfs of a size; skipped where we may not mount."""
    mounted = []

    def mount(size="4m", name="small"):
        place = tmp_path / name
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "qmpsnap-test", place]
        if subprocess.run(words, check=False, capture_output=True).returncode:
            pytest.skip("only root can mount a tmpfs")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def temporary():
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def _descriptors():
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(path.name)] = str(path.readlink())
    return found


def _processes():
    """The ids of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - for every test


def _started(before, folder):
    """Our child processes, and those with the test's folder in their command lines, that began since."""
    found = []
    for pid in sorted(_processes() - before):
        entry = Path("/proc", str(pid))
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except (OSError, ValueError, IndexError):
            continue
        if parent == os.getpid() or folder in command:
            found.append((pid, command.replace("\0", " ").strip()))
    return found


@pytest.fixture
def leftovers(tmp_path):
    return Leftovers(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def _forks():
    with forking.serving():
        yield


@pytest.fixture(autouse=True)
def _nothing_left(request, leftovers, tmp_path):
    if "qmpsnap_in_use" in request.fixturenames:  # the plugin's QEMU lives on
        request.getfixturevalue("qmpsnap_in_use")
    before, processes = _descriptors(), _processes()
    yield
    gc.collect()
    assert _started(processes, str(tmp_path)) == [], "processes are left"
    opened = {
        number: to
        for number, to in _descriptors().items()
        if number not in before and "[eventpoll]" not in to and not to.startswith("/proc/")
    }
    assert len(opened) <= _loop_descriptors(request), f"descriptors are left: {opened}"
    assert leftovers.found() == [], "temporary files or records are left"


def _loop_descriptors(request):
    """Sockets of a test's event loop, and to the plugin's guest, when they end after us."""
    return 2 * any("runner" in name for name in request.fixturenames) + 2 * (
        "qmpsnap_in_use" in request.fixturenames
    )


@pytest.fixture(autouse=True)
async def _no_task_left(_nothing_left):
    yield
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == [], "tasks are left"
