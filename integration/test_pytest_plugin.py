"""The plugin as its users have it: suites of tests in a pytest of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.cli import ROOT
from integration.known_images import QEMUS

pytestmark = pytest.mark.timeout(300)

CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {"vda": "BASE"}
"""

# What each test leaves behind, and finds nothing of: a file in memory, a block on the disk, a snapshot.
TRACES = """
READ = "ls /run; dd if=/dev/vda bs=4 count=1 2> /dev/null"
FIRST = "base"

def write(number):
    return f"touch /run/trace{number}; echo -n x{number:03} | dd of=/dev/vda conv=notrunc 2> /dev/null; sync"
"""

FIFTY = (
    TRACES
    + """
import pytest

@pytest.mark.parametrize("number", range(0, COUNT, 2))
def test_plain(vm, guest, number):
    assert guest.run(READ) == FIRST
    guest.run(write(number))
    vm.snapshot("mine")
    assert [moment.name for moment in vm.moments().moments if moment.name[:8] != "qmpsnap-"] == ["mine"]

@pytest.mark.parametrize("number", range(1, COUNT, 2))
async def test_async(vm, guest, number):
    assert await guest.run(READ) == FIRST
    await guest.run(write(number))
    await vm.snapshot("mine")
    moments = await vm.moments()
    assert [moment.name for moment in moments.moments if moment.name[:8] != "qmpsnap-"] == ["mine"]
"""
)


@dataclass
class Ended:
    """How a run of pytest ended."""

    code: int
    out: str

    @property
    def counts(self):
        """The numbers of its closing line, by their words."""
        return {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", self.out.splitlines()[-1])}


class Suite:
    """A suite in a directory, and the QEMU that it runs on."""

    def __init__(self, qemu, folder):
        self.qemu, self.folder = qemu, folder
        self.base = Path(qemu.create(folder / "base.qcow2", size="64M"))
        letters = [f"write -P {letter} {place} 1" for place, letter in enumerate(b"base")]
        qemu.io(self.base, *letters)
        self.bytes = self.base.read_bytes()
        self.tests = folder / "tests"
        self.tests.mkdir()
        (self.tests / "conftest.py").write_text(CONFTEST.replace("BASE", str(self.base)))
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def start(self, text, *options):
        (self.tests / "test_it.py").write_text(text)
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={self.tests}"]
        words += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
        words += [f"--qmpsnap-qemu={self.qemu.directory}", f"--basetemp={self.folder / 'basetemp'}"]
        return subprocess.Popen(
            [*words, *options, str(self.tests)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env=os.environ | {"TMPDIR": str(self.temporary)},
        )  # fmt: skip

    def run(self, text, *options):
        with self.start(text, *options) as process:
            out = process.communicate(timeout=240)[0]
        print(out)
        return Ended(process.returncode, out)

    def left(self):
        """Processes and files that the run has left, and whether the image was written to."""
        processes = [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and str(self.temporary) in command_of(entry)
        ]
        files = [str(path) for path in self.temporary.rglob("*") if "pytest-of" not in str(path)]
        return processes, files, self.base.read_bytes() == self.bytes


NOTHING = ([], [], True)


def command_of(process):
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture
def suite(qemu, tmp_path):
    return Suite(qemu, tmp_path)


@pytest.fixture
def suite_on_the_oldest(tmp_path):
    return Suite(QEMUS[0], tmp_path)


def test_tests_see_nothing_of_each_other(suite):
    ended = suite.run(FIFTY.replace("COUNT", "6"))
    assert (ended.code, ended.counts["passed"]) == (0, 6)
    assert re.search(r"reset: memory, a trial took \S+ s; 1 boot\(s\), 5 reset\(s\)", ended.out)
    assert suite.left() == NOTHING
