"""What the plugin does without a machine."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import cast

import pytest

from qmpsnap import pytest_plugin
from qmpsnap.testing.shared.options import QmpsnapOptions
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
    assert options(memory="64", reset="boot", keep=True, ini=ini) == QmpsnapOptions(
        qemu="", accel="", memory_mib=64, reset="boot", boot_limit=9.5, keep=True, artifacts="", spare=""
    )


@each(
    ("option", "words"),
    [
        ({"accel": "hvf"}, "--qmpsnap-accel is 'hvf': give kvm or tcg"),
        ({"reset": "fast"}, "--qmpsnap-reset is 'fast': give one of memory, clone, disks, boot, none"),
        ({"memory": "much"}, "--qmpsnap-memory is 'much': give a number of MiB"),
        ({"memory": "-1"}, "--qmpsnap-memory is '-1'"),
        ({"memory": "0"}, "--qmpsnap-memory is '0'"),
        ({"boot_limit": "soon"}, "--qmpsnap-boot-limit is 'soon': give a number of seconds"),
        ({"spare": "two"}, "--qmpsnap-spare is 'two': give yes or no"),
        ({"boot_limit": "nan"}, "--qmpsnap-boot-limit is 'nan'"),
    ],
)
def test_options_that_mean_nothing_are_a_usage_error(option, words):
    with pytest.raises(pytest.UsageError, match=words):
        pytest_plugin.pytest_configure(cast("pytest.Config", Config(**option)))


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


RUN = """
import sys
import pytest

code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:asyncio", sys.argv[1]])
ours = {"qmpsnap", "qemu", "structlog"}
print(int(code), sorted(name for name in sys.modules if name.split(".")[0] in ours))
"""


def test_run_that_does_not_use_the_plugin_imports_nothing_but_its_file(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_fails():\n    assert not __file__\n")
    words = [sys.executable, "-c", RUN, tmp_path]
    done = subprocess.run(words, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "1 ['qmpsnap', 'qmpsnap.pytest_plugin']", done.stdout
