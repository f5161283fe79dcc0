from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import qmpsnap


def python(program, *words):
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("package", ["click", "rich"])
def test_main_says_what_to_install_when_a_package_is_missing(package):
    ended = python(f"import sys; sys.modules[{package!r}] = None; from qmpsnap.cli.main import main; main()")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"qmpsnap: the command line needs {package}: pip install 'qmpsnap[cli]'\n"


def test_importing_qmpsnap_needs_neither_click_nor_rich():
    ended = python("import sys; sys.modules['click'] = sys.modules['rich'] = None; import qmpsnap")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_chain_loads_neither_rich_nor_other_verbs(server):
    program = (
        "import sys; from qmpsnap.cli.main import run; code = run(sys.argv[1:]);"
        "print(code, [name for name in sys.modules if name == 'rich' or name.startswith('qmpsnap.cli.')])"
    )
    ended = python(program, "-s", server.path, "chain")
    code, loaded = ended.stdout.splitlines()[-1].split(" ", 1)
    assert code == "0"
    assert "'rich'" not in loaded
    assert "commit" not in loaded


def test_python_m_is_the_command(server):
    words = [sys.executable, "-m", "qmpsnap", "-s", server.path, "chain"]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "no disks\n", "")


def test_a_reader_that_has_gone_is_no_error(server):
    words = [sys.executable, "-m", "qmpsnap", "-s", server.path, "chain"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_full_disk_under_stdout_is_said(server):
    words = [sys.executable, "-m", "qmpsnap", "-s", server.path, "chain"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "qmpsnap: cannot write to stdout (No space left on device); the result is:\nno disks\n"
    )


STOPS = """
import os, signal, sys
class Stops:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            exec("os.kill(os.getpid(), signal.{signal})")
sys.meta_path.insert(0, Stops())
"""


MODULES = ["typing", "logging", "json", "click", "qmpsnap.entry", "anyio", "qmpsnap.cli.chain"]


def stopped(place, module, signal, *words):
    """Run the command; the signal comes as it imports that module."""
    (place / "sitecustomize.py").write_text(STOPS.format(module=module, signal=signal))
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "qmpsnap", *words],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(
    "module", ["typing", "logging", "json", "click", "qmpsnap.entry", "anyio", "qmpsnap.cli.chain"]
)
def test_main_that_is_stopped_while_it_imports_says_that_nothing_was_sent(tmp_path, module, signal):
    message = "stopped before anything was sent"
    ended = stopped(tmp_path, module, signal, "-s", "/none", "chain")
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == f"qmpsnap: {message}\n  nothing was changed\n"
    ended = stopped(tmp_path, module, signal, "-s", "/none", "chain", "--json")
    assert (ended.returncode, ended.stderr) == (130, "")
    error = {
        "type": "Interrupted",
        "message": message,
        "changed": "no",
        "hint": "",
        "invalid": [],
        "left": [],
    }
    assert json.loads(ended.stdout) == {"version": 1, "error": error}


ALONE = """
import __future__, importlib, os, sys  # what Python begins with, and a name without code
sys.path.insert(0, {root!r})
there = {{*sys.modules}}
import qmpsnap.cli.main
print(*sorted({{*sys.modules}} - there))
"""


def test_main_is_there_before_anything_else_is_imported():
    root = str(Path(qmpsnap.__file__).parents[1])
    words = [sys.executable, "-S", "-c", ALONE.format(root=root)]  # -S: nor what finds us
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("qmpsnap qmpsnap.cli qmpsnap.cli.main\n", "")
