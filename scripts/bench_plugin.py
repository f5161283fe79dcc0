"""The pytest plugin: a reset against a boot, a suite against one that boots for each test, and its import."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from bench_rows import Row, ms, ratio

import qmpsnap
from qmpsnap.model.machine_description import MachineDisk
from qmpsnap.testing.machine import find_guest_image, guest_argv, guest_machine
from qmpsnap.testing.shared.pool import Pool
from qmpsnap.testing.shared.source import Overrides, source_of

if TYPE_CHECKING:
    from bench_machines import Bench

__all__ = ["plugin"]

MEMORY = 128  # MiB of the guest
TESTS = 50
BOOTED = 5  # tests that boot: as many as are needed for a mean
CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def qmpsnap_disks():
    return {"vda": "BASE"}
"""
SUITE = """
import pytest

@pytest.mark.parametrize("number", range(COUNT))
def test_it(vm, guest, number):
    assert guest.run("ls /run") == ""
    guest.run("touch /run/trace; echo trace | dd of=/dev/vda conv=notrunc 2> /dev/null; sync")
    vm.snapshot("mine")
"""


async def plugin(bench: Bench):
    """Resets and boots of one machine, in turn; whole suites; and pytest where nothing uses the plugin."""
    directory = bench.fresh()
    base = directory / "base.qcow2"
    bench.image("create", "-q", "-f", "qcow2", base, "256M")
    resets: list[float] = []
    boots: list[float] = []
    for number in range(max(3, bench.runs // 10)):
        boots.append(await boot(bench, directory / str(number)))
        resets += await anyio.to_thread.run_sync(reset_often, bench, base)
    yield ratio("a test's reset in place, against boot to init", resets, boots, 0.1)
    alone = "--qmpsnap-spare=no"
    slow = await anyio.to_thread.run_sync(suite, bench, base, BOOTED, "--qmpsnap-reset=boot", alone)
    each = f"{TESTS} tests, against a boot per test ({BOOTED} measured)"
    for options, words, bound in (([], "", 0.15), ([alone], ", one QEMU", None)):
        fast = await anyio.to_thread.run_sync(suite, bench, base, TESTS, "--qmpsnap-reset=memory", *options)
        yield ratio(each + words, [fast], [slow * TESTS / BOOTED], bound)
    yield await anyio.to_thread.run_sync(collected, bench, directory)


async def boot(bench: Bench, directory: Path) -> float:
    """Seconds to the first line that the guest's init prints."""
    directory.mkdir()
    console = directory / "console"
    argv = guest_argv(
        bench.qemu / "qemu-system-x86_64",
        [],
        image=find_guest_image(),
        port=directory / "port",
        memory_mib=MEMORY,
        console=console,
    )
    started = time.perf_counter()
    async with qmpsnap.launch(argv):
        while not (console.exists() and console.stat().st_size):  # a file has no event for its first line
            await anyio.sleep(0.002)
        return time.perf_counter() - started


def reset_often(bench: Bench, base: Path) -> list[float]:
    """Seconds of ten resets of one machine, each after a test that wrote to memory and disk."""
    machine = guest_machine(
        bench.qemu / "qemu-system-x86_64", [MachineDisk(name="vda", file=base)], memory_mib=MEMORY
    )
    source = source_of(machine, {}, None, overrides=Overrides())
    took: list[float] = []
    with Pool(reset="memory", spare=False) as pool:
        for _ in range(11):
            started = time.perf_counter()
            in_use = pool.begin("", source, None, test="")
            took.append(time.perf_counter() - started)
            in_use.guest.run("touch /run/trace; echo trace | dd of=/dev/vda conv=notrunc 2> /dev/null; sync")
            in_use.close()
    return took[1:]  # the first one boots


def suite(bench: Bench, base: Path, tests: int, *options: str) -> float:
    """Seconds of a whole run of pytest."""
    directory = bench.fresh()
    (directory / "conftest.py").write_text(CONFTEST.replace("BASE", str(base)))
    (directory / "test_it.py").write_text(SUITE.replace("COUNT", str(tests)))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={directory}"]
    words += [*options, f"--qmpsnap-qemu={bench.qemu}", f"--qmpsnap-memory={MEMORY}", "."]
    started = time.perf_counter()
    done = subprocess.run(words, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout)
    return time.perf_counter() - started


def collected(bench: Bench, directory: Path) -> Row:
    """`pytest --collect-only` where there is no test, with the plugin and without it, in pairs."""
    pairs: list[tuple[float, float]] = []
    empty = directory / "empty"
    empty.mkdir()
    collect(empty, "-p", "no:qmpsnap")
    collect(empty)
    for number in range(2 * bench.runs):
        if number % 2:
            pairs.append((collect(empty), collect(empty, "-p", "no:qmpsnap")))
        else:
            without = collect(empty, "-p", "no:qmpsnap")
            pairs.append((collect(empty), without))
    with_it, alone = (statistics.median(took) for took in zip(*pairs, strict=True))
    more = statistics.median(mine - bare for mine, bare in pairs) * 1000
    return Row("pytest --collect-only of nothing, with the plugin", ms(with_it), ms(alone), more, 15, "ms")


def collect(empty: Path, *options: str) -> float:
    """Seconds of a run."""
    # pytest compiles a plugin once, and keeps that, as for an installed package.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    words = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider"]
    words += ["-p", "no:asyncio"]  # whose warning about its options goes to stderr
    started = time.perf_counter()
    subprocess.run([*words, *options], cwd=empty, env=environment, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started
