"""What the plugin does without a machine."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import cast

import pytest

from qmpsnap import pytest_plugin
from qmpsnap.testing.shared.machine import Account
from tests.each import each


class Config:
    """Options as pytest gives them."""

    def __init__(self, *, ini=None, **given):
        self.given = {f"--qmpsnap-{name.replace('_', '-')}": value for name, value in given.items()}
        self.ini = ini or {}

    def getoption(self, name):
        return self.given.get(name)

    def getini(self, name):
        return self.ini.get(name, "")


def options(**given):
    return pytest_plugin._options(cast("pytest.Config", Config(**given)))


def test_options_of_the_command_line_go_before_those_of_the_ini_file():
    ini = {"qmpsnap_memory": "32", "qmpsnap_boot_limit": "9.5"}
    assert options(memory="64", reset="boot", keep=True, ini=ini) == pytest_plugin.QmpsnapOptions(
        qemu="", accel="", memory_mib=64, reset="boot", boot_limit=9.5, keep=True, artifacts="", spare=""
    )


@each(
    ("option", "words"),
    [
        ({"accel": "hvf"}, "--qmpsnap-accel is 'hvf': give kvm or tcg"),
        ({"reset": "fast"}, "--qmpsnap-reset is 'fast': give one of memory, clone, disks, boot, none"),
        ({"memory": "much"}, "--qmpsnap-memory is 'much': give a number of MiB"),
        ({"memory": "-1"}, "--qmpsnap-memory is '-1'"),
        ({"boot_limit": "soon"}, "--qmpsnap-boot-limit is 'soon': give a number of seconds"),
        ({"spare": "two"}, "--qmpsnap-spare is 'two': give yes or no"),
        ({"boot_limit": "nan"}, "--qmpsnap-boot-limit is 'nan'"),
    ],
)
def test_options_that_mean_nothing_are_a_usage_error(option, words):
    with pytest.raises(pytest.UsageError, match=words):
        pytest_plugin.pytest_configure(cast("pytest.Config", Config(**option)))


@each(
    ("account", "lines"),
    [
        (Account(), ["reset: not chosen, because no machine became ready; 0 boot(s), 0 reset(s)"]),
        (Account(boots=[2.0]), ["reset: as the tests' markers say; 1 boot(s), 0 reset(s)"]),
        (
            Account(reset="memory, as chosen", boots=[3.0, 2.5], resets=[0.3, 0.1, 0.2], again=["a: b"]),
            ["reset: memory, as chosen; 2 boot(s), 3 reset(s), 0.20 s each", "booted anew after a: b"],
        ),
        (
            Account(reset="memory, as chosen", boots=[2.0], spare="one QEMU again: no port"),
            ["reset: memory, as chosen; 1 boot(s), 0 reset(s)", "one QEMU again: no port"],
        ),
    ],
)
def test_report_says_what_was_done(account, lines):
    assert pytest_plugin._report_lines(**asdict(account)) == lines


def test_report_names_the_worker_of_each_line():
    account = asdict(Account(reset="memory, as chosen", boots=[3.0], again=["a: b"]))
    assert pytest_plugin._report_lines(**account, worker="gw1") == [
        "[gw1] reset: memory, as chosen; 1 boot(s), 0 reset(s)",
        "[gw1] booted anew after a: b",
    ]


async def test_coroutines_keep_what_plugins_look_at():
    async def test(vm):
        return vm

    async def fixture(vm):
        yield vm
        left.append(vm)

    left: list[int] = []
    vars(fixture)["_force_asyncio_fixture"] = True
    wrapped = pytest_plugin._with_real(test)
    assert inspect.iscoroutinefunction(wrapped)
    assert await wrapped(vm=1) == 1
    wrapped = pytest_plugin._with_real(fixture)
    assert inspect.isasyncgenfunction(wrapped)
    assert vars(wrapped)["_force_asyncio_fixture"]
    assert [value async for value in wrapped(vm=2)] == [2]
    assert left == [2]
