from __future__ import annotations

import json
import subprocess
import sys

from click.shell_completion import ShellComplete

from qmpsnap.cli.app import App, cli


def test_explain_prints_each_meaning_with_its_commands_unbroken(qmpsnap, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    ended = qmpsnap("explain", "Paused")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "paused (run state): The guest was paused by a command: stop,",
        "  or an operation that needs it paused.",
        "  next: qmpsnap cont resumes it. Look at qmpsnap jobs first:",
        "    an operation that was interrupted may have left it",
        "    paused.",
        "paused (job state): The job is paused: by request, by an I/O",
        "  error, or for a moment because QEMU drains the disk.",
        "  next: If qmpsnap jobs shows an I/O error, remove its",
        "    cause. qmpsnap job resume ID resumes the job.",
    ]


def test_explain_json_has_the_meanings(qmpsnap):
    assert qmpsnap("--json", "explain", "STOP").json == {
        "version": 1,
        "meanings": [
            {
                "word": "STOP",
                "kind": "event",
                "text": "The guest was paused.",
                "advice": "`qmpsnap status` says why.",
            }
        ],
    }


def test_explain_knows_what_the_doctor_finds(qmpsnap, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = qmpsnap("explain", "node-left")
    assert (ended.code, ended.out.splitlines()) == (
        0,
        [
            "node-left (finding): A node that nothing uses, and that keeps its file open for",
            "  writing.",
            "  next: blockdev-del frees the file, unless the node was added to be used later.",
        ],
    )


def test_explain_of_an_unknown_word_exits_3_with_similar_ones(qmpsnap):
    ended = qmpsnap("explain", "pasued")
    assert (ended.code, ended.out) == (3, "")
    assert "similar words: paused" in ended.err


def test_explain_without_a_word_lists_all_by_kind(qmpsnap):
    ended = qmpsnap("explain")
    assert ended.code == 0
    assert ended.out.startswith("run state:\n  running, paused, prelaunch")
    assert "\nexit code:\n  0, 1, 2, 3, 4, 5, 6, 7, 8, 130\n" in ended.out
    assert "shutdown" in json.dumps(qmpsnap("explain", "--json").json)


def test_explain_completes_in_any_case():
    offered = ShellComplete(cli, {"obj": App()}, "qmpsnap", "_QMPSNAP_COMPLETE").get_completions(
        ["explain"], "Block_job_e"
    )
    assert [item.value for item in offered] == ["BLOCK_JOB_ERROR"]


def test_explain_loads_nothing_that_needs_a_machine():
    program = (
        "import sys; from qmpsnap.cli.main import run; code = run(['explain', 'ready']);"
        "print(code, 'anyio' in sys.modules, 'qmpsnap.vm' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert ended.splitlines()[-1] == "0 False False"
