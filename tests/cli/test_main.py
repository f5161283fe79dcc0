from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

import qmpsnap
from qmpsnap.cli.main import run
from tests.each import each


def python(program, *words):
    return subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )


@each("package", ["click", "rich"])
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


def test_a_refusal_that_nobody_reads_keeps_its_exit_code(server):
    words = [sys.executable, "-m", "qmpsnap", "-s", server.path, "job", "wait", "none"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        assert subprocess.run(words, stderr=full, check=False).returncode == 3


def test_without_stdout_or_stderr_the_other_one_is_used(monkeypatch, server):
    monkeypatch.setattr("sys.stdout", None)
    assert run(["-s", server.path, "chain"]) == 1
    monkeypatch.setattr("sys.stderr", None)
    assert run(["-s", server.path, "job", "wait", "none"]) == 3


# Runs the command. As it imports one of the modules it forks for each signal, and sends that to the fork.
FORKS = """
import os, runpy, sys
place, modules, numbers, words = eval(sys.argv[1])
sys.argv[:] = words
class Stops:
    def find_spec(self, name, path=None, target=None):
        for number in numbers if name in modules else ():
            stem = f"{place}/{name}-{number}"
            if os.fork() == 0:
                for stream in (1, 2):
                    os.dup2(os.open(f"{stem}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
                os.kill(os.getpid(), number)
            with open(f"{stem}.code", "w") as code:
                code.write(str(os.waitstatus_to_exitcode(os.wait()[1])))
sys.meta_path.insert(0, Stops())
runpy.run_module("qmpsnap", run_name="__main__", alter_sys=True)
"""
MODULES = ("typing", "logging", "json", "click", "qmpsnap.entry", "anyio", "qmpsnap.cli.chain")
STOPPED = "stopped before anything was sent"
AS_TEXT = f"qmpsnap: {STOPPED}\n  nothing was changed\n"
AS_JSON = (
    f'{{"version": 1, "error": {{"type": "Interrupted", "message": "{STOPPED}", "changed": "no", "hint": "", '
    '"invalid": [], "left": []}}\n'
)


@pytest.mark.parametrize(("more", "printed"), [((), ("", AS_TEXT)), (("--json",), (AS_JSON, ""))])
def test_main_that_is_stopped_while_it_imports_says_that_nothing_was_sent(tmp_path, more, printed):
    numbers = (int(SIGINT), int(SIGTERM))
    words = ("qmpsnap", "-s", "/none", "chain", *more)
    ended = python(FORKS, repr((str(tmp_path), MODULES, numbers, words)))
    assert ended.returncode == 4  # the command itself goes on, and there is no such socket
    found = {}
    for file in tmp_path.glob("*.code"):
        stem = file.with_suffix("")
        found[stem.name] = (file.read_text(), Path(f"{stem}.1").read_text(), Path(f"{stem}.2").read_text())
    assert found == {f"{module}-{number}": ("130", *printed) for module in MODULES for number in numbers}


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
