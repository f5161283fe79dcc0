from __future__ import annotations

import json

from qmpsnap.cli.progress import Bar, Lines, reporter
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.run.progress import Progress

SEEN = Progress(Job("j", "commit", JobStatus.RUNNING, offset=25, length=100), 50.0, 1.5)


def test_lines_as_json_are_one_object_each_on_stderr(capsys):
    Lines(as_json=True).update(SEEN)
    out, err = capsys.readouterr()
    facts = {"job": "j", "status": "running", "offset": 25, "length": 100, "rate": 50.0, "remaining_s": 1.5}
    assert (out, json.loads(err)) == ("", {"version": 1, "progress": facts})


def test_lines_as_text_say_how_far_how_fast_and_how_long(capsys):
    Lines(as_json=False).update(SEEN)
    assert capsys.readouterr().err == "j: running, 25% of 100 B, 50 B/s, 1.5 s left\n"


def test_lines_say_no_more_than_the_status_of_a_job_that_counts_nothing(capsys):
    job = Job("j", "snapshot-save", JobStatus.RUNNING, offset=0, length=1)
    Lines(as_json=False).update(Progress(job, None, None))
    assert capsys.readouterr().err == "j: running\n"


def test_reporter_is_none_without_a_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    assert reporter(asked=False, as_json=False) is None


def test_reporter_is_a_bar_on_a_terminal_and_lines_when_asked(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert isinstance(reporter(asked=False, as_json=False), Bar)
    assert isinstance(reporter(asked=True, as_json=False), Lines)


def test_bar_comes_with_the_second_look_and_goes_when_hidden(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # to rich, any stderr is a terminal then
    bar = Bar()
    bar.update(SEEN)
    assert capsys.readouterr().err == ""
    bar.update(SEEN)
    assert "commit running" in capsys.readouterr().err
    bar.hide()
    bar.update(SEEN)
    capsys.readouterr()
    bar.show()
    bar.update(SEEN)
    assert "commit running" in capsys.readouterr().err
    bar.hide()
