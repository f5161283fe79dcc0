from __future__ import annotations

import pytest

from qmpsnap import errors
from qmpsnap.cli.app import App, cli
from qmpsnap.cli.output import json_line
from qmpsnap.cli.report import report, run_group
from qmpsnap.errors import Changed

JOB = "qmpsnap-commit-pivot-0a1b2c3d"


def text(capsys, error, app=None):
    code = report(app or App(), error)
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Refused("m"), 3),
        (errors.TargetExists("m", file="/f"), 3),
        (errors.ConnectFailed("m"), 4),
        (errors.JobFailed("m", job_id=JOB, error="e"), 4),
        (errors.LinkLost("m"), 5),
        (errors.GraphMismatch("m", expected={}, found={}), 6),
        (errors.Incomplete("m"), 7),
        (errors.JobPaused("m", job_id=JOB, reason="no space", hint="h"), 7),
        (errors.Detached("m", job_id=JOB, hint="h"), 130),
        (errors.Interrupted("m"), 130),
    ],
)
def test_report_returns_the_code_of_the_error_s_class(capsys, error, code):
    assert text(capsys, error)[0] == code


def test_report_says_what_happened_whether_anything_changed_and_what_next(capsys):
    error = errors.TargetExists("/f exists already", file="/f", hint="choose another name")
    assert text(capsys, error) == (
        3,
        "",
        ["qmpsnap: refused: /f exists already", "  nothing was changed", "  next: choose another name"],
    )


def test_report_names_invalid_files_and_what_is_left(capsys):
    error = errors.JobFailed(
        "job failed", job_id=JOB, error="e", changed=Changed.YES, invalid=["/base"], left=["/made"]
    )
    assert text(capsys, error)[2] == [
        "qmpsnap: job failed",
        "  invalid, no longer holds its snapshot: /base",
        "  left behind: /made",
        "  the guest's data is unchanged, but the layers listed above were written to",
    ]


def test_report_names_what_is_still_to_do(capsys):
    error = errors.Incomplete("done, but", remaining=["retire-file x"])
    assert text(capsys, error)[2] == [
        "qmpsnap: done, but",
        "  not done yet: retire-file x",
        "  the chains, or data in their layers, were changed",
        "  next: qmpsnap jobs shows what is left, and how to finish it",
    ]


def test_report_says_what_to_start_from_when_the_root_had_moved(capsys):
    app = App(moved={"vda": "/new"})
    assert "  from now on, start vda from /new" in text(capsys, errors.LinkLost("lost"), app)[2]


def test_report_of_a_stop_after_the_root_had_moved_says_that_the_chain_was_changed(capsys):
    error = errors.Interrupted("the checkpoint 'c1' is complete", changed=Changed.YES, hint="convert it")
    assert text(capsys, error, App(moved={"vda": "/new"}))[2] == [
        "qmpsnap: the checkpoint 'c1' is complete",
        "  from now on, start vda from /new",
        "  the chains, or data in their layers, were changed",
        "  next: convert it",
    ]


@pytest.mark.parametrize(
    ("moved", "changed"),
    [
        ({"vda": "/new"}, "the chains, or data in their layers, were changed"),
        ({}, "it is not known whether anything was changed"),
    ],
)
def test_interrupt_after_an_operation_had_ended_is_told_from_one_before_it(
    capsys, monkeypatch, moved, changed
):
    def late(**given):
        given["obj"].ended, given["obj"].moved = True, moved
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "main", late)
    assert run_group(["chain"]) == 130
    err = capsys.readouterr().err
    assert "interrupted after the operation had ended" in err
    assert changed in err


def test_report_prints_the_job_s_id_when_it_was_left(capsys):
    assert text(capsys, errors.Detached("left", job_id=JOB, hint="h"))[1] == f"{JOB}\n"


def test_report_as_json_is_one_object_with_all_that_the_error_knows(capsys):
    app = App(json=True, moved={"vda": "/new"})
    error = errors.CommandFailed(
        "no",
        command="transaction",
        arguments={"a": 1},
        qmp_class="GenericError",
        desc="d",
        hint="h",
        left=["l"],
    )
    code, out, err = text(capsys, error, app)
    body = {
        "type": "CommandFailed", "message": "no", "changed": "no", "hint": "h", "invalid": [], "left": ["l"],
        "command": "transaction", "arguments": {"a": 1}, "qmp_class": "GenericError", "desc": "d",
        "active": {"vda": "/new"},
    }  # fmt: skip
    assert (code, out, err) == (4, json_line(error=body) + "\n", [])


def test_run_says_what_a_fault_is_and_exits_1(qmpsnap, monkeypatch):
    monkeypatch.setattr("qmpsnap.cli.runner.configure", lambda _: dict[str, str]()["x"])
    ended = qmpsnap("-s", "/none", "--json", "chain")
    assert (ended.code, ended.json["error"]["type"]) == (1, "QmpsnapError")
    assert "bug in qmpsnap: KeyError" in ended.json["error"]["message"]


def test_run_refuses_misuse_with_2(qmpsnap):
    ended = qmpsnap("-s", "/none", "mirror", "vda", "t")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "qmpsnap: choose how the mirror ends: --pivot or --finish",
        "  nothing was changed",
        "  next: qmpsnap mirror --help",
    ]


def test_run_tells_misuse_as_json_though_it_could_not_read_all(qmpsnap):
    ended = qmpsnap("chain", "--nope", "--json")
    assert (ended.code, ended.json["error"]["type"], ended.json["error"]["changed"]) == (
        2,
        "UsageError",
        "no",
    )
