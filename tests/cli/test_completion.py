from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from qmpsnap.cli.machine_names import is_word
from qmpsnap.cli.main import run
from tests.each import each

from .conftest import disks


@pytest.fixture
def complete(capfd, monkeypatch):
    """What the shell reads when somebody presses Tab, each word on a line of its own."""

    def call(words, index, shell="bash", **environment):
        environment |= {
            "_QMPSNAP_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(index),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            run([])
        out, err = capfd.readouterr()
        assert err == ""
        return out.split()

    return call


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script(qmpsnap, shell):
    ended = qmpsnap("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    assert f"_QMPSNAP_COMPLETE={shell}_complete" in ended.out


def test_completion_knows_the_verbs(complete):
    assert complete("qmpsnap st", 1) == ["plain,stream", "plain,status", "plain,stop"]


def test_completion_knows_disks_and_layers_of_the_machine(complete, server):
    disks(server, vda=("/d/top.qcow2", "/d/base.qcow2"), vdb=("/d/b.qcow2",))
    assert complete(f"qmpsnap -s {server.path} chain ", 4) == ["plain,vda", "plain,vdb"]
    assert complete("qmpsnap commit vda --base b", 4, QMPSNAP_SOCKET=server.path) == ["plain,base.qcow2"]


def test_completion_is_silent_without_a_machine(complete, tmp_path):
    assert complete("qmpsnap chain ", 2) == []
    assert complete(f"qmpsnap -s {tmp_path}/none chain ", 4) == []


def test_completion_is_silent_when_no_qmp_answers(complete, server):
    server.greeting = b"220 mail\r\n"
    assert complete(f"qmpsnap -s {server.path} chain ", 4) == []


WORDS = ("before-upgrade", "vda.n1", "a:b@c+d=e/f", "_x", "/machine/peripheral/v")
HOSTILE = (
    "x;touch PWNED",
    "x$(touch PWNED)",
    "x`touch PWNED`",
    "x&touch PWNED",
    "x|touch PWNED",
    "x>PWNED",
    "x<PWNED",
    "x touch",
    "x\ttouch",
    "x\ntouch PWNED",
    "x\rtouch",
    "'x",
    '"x',
    "x\\",
    "$HOME",
    "~root",
    "x*",
    "x?",
    "device[0]",
    "{a,b}",
    "x!y",
    "#x",
    "(touch)",
    "=touch",
    "%1",
    "-x",
    "--foreign",
    "^x",
    "x,y",
    "",
    "x\x1b[2J",
    "ü",
    "x\udcff",
)


@each("name", WORDS)
def test_is_word_of_what_every_shell_takes_literally(name):
    assert is_word(name)


@each("name", HOSTILE)
def test_is_word_of_nothing_that_a_shell_would_run_expand_or_split(name):
    assert not is_word(name)


def test_completion_offers_no_name_that_a_shell_would_run(complete, server):
    """Whoever makes an image names its snapshots, and Enter runs what was offered."""
    hostile = [name for name in HOSTILE if name and "\udcff" not in name]
    disks(server, **{name: (f"/d/{name}.qcow2",) for name in (*hostile, "vda")})
    answer = {"bash": ["plain,vda"], "zsh": ["plain", "vda", "_"], "fish": ["plain,vda"]}
    for shell, lines in answer.items():
        index = "" if shell == "fish" else 2
        assert complete("qmpsnap chain ", index, shell, QMPSNAP_SOCKET=server.path) == lines


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_runs_nothing_of_what_is_offered(server, tmp_path):
    """The script in a real bash: Tab's answers, joined to a line, and that line run."""
    disks(
        server,
        **{name: (f"/d/{name}",) for name in ("x;touch PWNED;$(touch PWNED)", "x$(touch PWNED)", "xda")},
    )
    script = subprocess.run(
        [sys.executable, "-m", "qmpsnap", "completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    run = f'qmpsnap() {{ {sys.executable} -m qmpsnap "$@"; }}\nexport -f qmpsnap\n'
    env = 'env() { while [[ $1 == *=* ]]; do local -x "$1"; shift; done; "$@"; }\n'
    line = (
        "COMP_WORDS=(qmpsnap chain x) COMP_CWORD=2\n_qmpsnap_completion qmpsnap\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\nfor word in "${COMPREPLY[@]}"; do eval "true $word"; done\n'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", run + env + script + line],
        env=os.environ | {"QMPSNAP_SOCKET": server.path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, list(tmp_path.glob("PWNED"))) == ("xda\n", [])
