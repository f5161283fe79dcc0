"""Suites of tests in a pytest of their own, as a user of the plugin has them.

A `Suite` is a directory with a conftest.py and a base image; `Suite.left()` is NOTHING if nothing is left.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from integration.cli import ROOT

# In an order that is the same for all workers, and is not that of the file.
CONFTEST = """
import random
import pytest

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {"vda": "BASE"}

@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"

def pytest_collection_modifyitems(items):
    if len(items) > 6:
        random.Random(len(items)).shuffle(items)
"""

# A machine without a guest: QEMU alone is there at once.
BARE = """
import pytest, qmpsnap, time

@pytest.fixture(scope="session")
def qmpsnap_machine():
    return qmpsnap.Machine(disks=[qmpsnap.MachineDisk(name="vda", file="BASE")])

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}
"""


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

    def __init__(self, qemu, folder, temporary):
        self.qemu, self.folder = qemu, folder
        self.base = Path(qemu.create(folder / "base.qcow2", size="64M"))
        letters = [f"write -P {letter} {place} 1" for place, letter in enumerate(b"base")]
        qemu.io(self.base, *letters)
        self.bytes = self.base.read_bytes()
        self.tests = folder / "tests"
        self.tests.mkdir()
        (self.tests / "conftest.py").write_text(CONFTEST.replace("BASE", str(self.base)))
        self.temporary = temporary

    def start(self, text, *options, cwd=ROOT):
        (self.tests / "test_it.py").write_text(text.replace("BASE", str(self.base)))
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={self.tests}"]
        words += ["-o", "asyncio_default_fixture_loop_scope=function"]
        words += [f"--qmpsnap-qemu={self.qemu.directory}", f"--basetemp={self.folder / 'basetemp'}"]
        words += ["--qmpsnap-spare=no"]  # how many QEMUs run does not depend on the host
        return subprocess.Popen(
            [*words, *options, str(self.tests)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
            env=os.environ | {"TMPDIR": str(self.temporary)},
        )  # fmt: skip

    def run(self, text, *options, cwd=ROOT):
        with self.start(text, *options, cwd=cwd) as process:
            out = process.communicate(timeout=240)[0]
        print(out)
        return Ended(process.returncode, out)

    def left(self):
        """Processes and files that the run has left, also beside the image, and whether that is the same."""
        processes = [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and str(self.temporary) in command_of(entry)
        ]
        walked = os.walk(self.temporary)  # it passes over a directory that goes meanwhile
        paths = [str(Path(place, name)) for place, *names in walked for name in chain(*names)]
        files = [path for path in paths if "pytest-of" not in path]
        files += [str(path) for path in self.folder.glob("*.q*") if path != self.base]
        return processes, files, self.base.read_bytes() == self.bytes


NOTHING = ([], [], True)


def command_of(process):
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
