from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .conftest import disks


def complete(words, incomplete_index, **environment):
    process = subprocess.run(
        [sys.executable, "-m", "qmpsnap"],
        env=os.environ
        | {"_QMPSNAP_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(incomplete_index)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    return [line.partition(",")[2] for line in process.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_script(qmpsnap, shell):
    ended = qmpsnap("completion", shell)
    assert (ended.code, ended.err) == (0, "")
    assert f"_QMPSNAP_COMPLETE={shell}_complete" in ended.out


def test_completion_knows_the_verbs():
    assert complete("qmpsnap st", 1) == ["stream", "status", "stop"]


def test_completion_knows_disks_and_layers_of_the_machine(server):
    disks(server, vda=("/d/top.qcow2", "/d/base.qcow2"), vdb=("/d/b.qcow2",))
    assert complete(f"qmpsnap -s {server.path} chain ", 4) == ["vda", "vdb"]
    assert complete("qmpsnap commit vda --base b", 4, QMPSNAP_SOCKET=server.path) == ["base.qcow2"]


def test_completion_is_silent_without_a_machine(tmp_path):
    assert complete("qmpsnap chain ", 2) == []
    assert complete(f"qmpsnap -s {tmp_path}/none chain ", 4) == []


def test_completion_is_silent_when_no_qmp_answers(server):
    server.greeting = b"220 mail\r\n"
    assert complete(f"qmpsnap -s {server.path} chain ", 4) == []
