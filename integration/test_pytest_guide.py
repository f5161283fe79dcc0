"""What the howto on pytest shows: its machines, its tests, and a shell in a guest of one's own."""

from __future__ import annotations

import re

import pytest

from integration.cli import ROOT
from integration.suites import NOTHING, Suite
from qmpsnap.testing.machine import find_guest_image

pytestmark = pytest.mark.one_qemu

GUIDE = (ROOT / "docs" / "howto" / "pytest.md").read_text()

HAS_CONSOLE = """
import pytest

@pytest.mark.parametrize("number", range(2))
def test_it(vm, qmpsnap_directory, number):
    assert [*vm.graph().chains()] == ["vda"]
    vm.snapshot("one")
    assert "init runs" in (qmpsnap_directory / "console.log").read_text()
"""
# The guest is ours, but the tests use its agent alone.
HAS_AGENT = """
from dataclasses import replace

import pytest
from qmpsnap.testing.machine import find_guest_image, guest_machine

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.fixture(scope="session")
def qmpsnap_machine():
    machine = guest_machine(image=find_guest_image(agent=True))
    return replace(machine, ports=(*machine.ports, "org.qemu.guest_agent.0"))

"""
AGAIN = """

async def test_again(shell):
    await shell.run("mkdir /run/mine")
"""
ENDS = """
import time

def test_it(vm, guest, qmpsnap_directory):
    vm.execute("quit")
    while (qmpsnap_directory / "qmpsnap.guest").exists():
        time.sleep(0.01)
    guest.run("true")
"""
HAS_NO_GUEST = """
import pytest, qmpsnap

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {}

@pytest.fixture(scope="session")
def qmpsnap_machine():
    return qmpsnap.Machine(memory_mib=32)

def test_it(guest):
    guest.run("true")
"""


def block_with(word):
    """The block of Python with that word."""
    return next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if word in block)


@pytest.fixture
def suite(qemu, tmp_path, temporary):
    return Suite(qemu, tmp_path, temporary)


def test_guide_s_conftest_and_tests_pass(suite):
    conftest, tests = (
        GUIDE.partition(f"## {heading}\n")[2].partition("```python\n")[2].partition("```")[0]
        for heading in ("Describe the machine", "Write tests")
    )
    images = suite.folder / "images"
    images.mkdir()
    suite.qemu.create(images / "base.qcow2", size="64M")
    suite.qemu.create(images / "data.img", size="1M", form="raw")
    (suite.tests / "conftest.py").write_text(conftest)
    ended = suite.run(tests, "-o", "asyncio_mode=auto", cwd=suite.folder)
    assert (ended.code, ended.counts["passed"]) == (0, 2)


def test_guide_s_command_line_is_reset_and_its_console_is_read(suite):
    conftest = block_with("-kernel")
    image = find_guest_image()
    for name, file in (("vmlinuz", image.kernel), ("initrd.img", image.initrd)):
        (suite.folder / name).symlink_to(file)
    images = suite.folder / "images"
    images.mkdir()
    suite.qemu.create(images / "debian.qcow2", size="64M")
    conftest = conftest.replace("login:", "init runs").replace(
        '"qemu-system', f'"{suite.qemu.directory}/qemu-system'
    )
    (suite.tests / "conftest.py").write_text(conftest)
    ended = suite.run(HAS_CONSOLE, cwd=suite.folder)
    assert (ended.code, ended.counts["passed"]) == (0, 2)


def test_guide_s_shell_runs_commands_in_the_first_state(suite):
    tests = block_with("open_agent").replace("cat /etc/debian_version", "mkdir /run/mine; ls -d /run/mine")
    ended = suite.run(HAS_AGENT + tests + AGAIN, "-o", "asyncio_mode=auto")
    assert (ended.code, ended.counts["passed"]) == (0, 2)
    assert "1 boot(s), 1 reset(s)" in ended.out
    assert suite.left() == NOTHING


def test_guest_of_one_s_own_has_no_fixture_and_the_error_says_what_has(suite):
    ended = suite.run(HAS_NO_GUEST)
    assert ended.counts["failed"] == 1
    assert "the machine does not run qmpsnap's own guest: it has no port" in ended.out
    assert "next: open_agent() or open_console() runs commands in another guest" in ended.out


def test_guest_whose_qemu_a_test_has_ended_is_told_from_one_that_never_had_the_port(suite):
    ended = suite.run(ENDS)
    assert ended.counts["failed"] == 1
    assert "LinkLost: lost the machine" in ended.out
    assert "qmpsnap's own guest" not in ended.out
