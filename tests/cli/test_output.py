from __future__ import annotations

import json
import sys
from types import MappingProxyType

import pytest

from qmpsnap.cli.output import (
    Row,
    Unwritable,
    chain_lines,
    duration,
    emit,
    json_line,
    relative,
    start_lines,
    table,
    to_stderr,
    wrap,
)
from qmpsnap.model.printable import printable
from tests.each import each


@each(
    ("seconds", "text"),
    [
        (None, "?"),
        (0.00312, "3.12 ms"),
        (0.25, "250 ms"),
        (1.5, "1.5 s"),
        (61.0, "61 s"),
        (3723.4, "1:02:03"),
    ],
)
def test_duration_is_spoken(seconds, text):
    assert duration(seconds) == text


@each(
    ("name", "text"),
    [
        ("vda", "vda"),
        ("ünï ☃", "ünï ☃"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\nb", "a\\nb"),
        ("\udcff", "\\udcff"),
    ],
)
def test_shown_spells_out_what_a_terminal_would_obey(name, text):
    assert printable(name) == text


def test_spell_makes_one_line_with_a_version():
    line = json_line(files=("a",), map=MappingProxyType({"k": "\udcff"}), number=1)
    assert json.loads(line) == {"version": 1, "files": ["a"], "map": {"k": "\udcff"}, "number": 1}
    assert line.isascii()
    assert "\n" not in line


@pytest.fixture(autouse=True)
def _eighty(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_table_leaves_out_empty_columns():
    rows = [Row(("a", "1", "")), Row(("bbb", "22", ""))]
    assert table(("NAME", "N", "REMARK"), rows, right=("N",)) == ["  NAME   N", "  a      1", "  bbb   22"]


def test_table_keeps_a_row_on_its_line():
    assert table(("NAME",), [Row(("a\nb",))], indent="") == ["NAME", "a\\nb"]


def test_table_breaks_the_last_column_between_words_and_no_name():
    rows = [
        Row(("a", "external", "one two three four five six seven eight nine ten eleven twelve thirteen x"))
    ]
    assert table(("NAME", "KIND", "DISKS"), rows, indent="") == [
        "NAME  KIND      DISKS",
        "a     external  one two three four five six seven eight nine ten eleven twelve",
        "                thirteen x",
    ]


def test_table_puts_a_name_that_is_too_long_on_a_line_of_its_own():
    long, path = "n" * 64, "/" + "d" * 90
    rows = [Row((long, "external", "2024-05-01", "vda")), Row(("sn", "external", "2024-05-01", path))]
    assert table(("NAME", "KIND", "TAKEN", "FILE"), rows) == [
        "  NAME  KIND      TAKEN       FILE",
        f"  {long}",
        "        external  2024-05-01  vda",
        "  sn    external  2024-05-01",
        f"      {path}",
    ]


def test_table_has_remarks_below_their_row():
    text = "the overlay is not in the chain of this disk any more, and lies in /d/base.one.qcow2 now"
    assert table(("NAME", "DISKS"), [Row(("sn", "vda"), (text, "x"))]) == [
        "  NAME  DISKS",
        "  sn    vda",
        "      the overlay is not in the chain of this disk any more, and lies in",
        "          /d/base.one.qcow2 now",
        "      x",
    ]


@each(
    ("text", "lines"),
    [
        ("short  with  spaces", ["short  with  spaces"]),
        (
            "job one is in the way: wait for it (qmpsnap job wait qmpsnap-commit-pivot-0a1b2c3d) or stop it",
            [
                "job one is in the way: wait for it",
                "    (qmpsnap job wait qmpsnap-commit-pivot-0a1b2c3d) or stop it",
            ],
        ),
        (
            """a node without use is in its way: qmpsnap qmp blockdev-del '{"node-name": "a, b"}', and on""",
            [
                "a node without use is in its way:",
                """    qmpsnap qmp blockdev-del '{"node-name": "a, b"}', and on""",
            ],
        ),
        (
            "qmpsnap cont resumes it. Look at qmpsnap jobs first: interrupted work may have left it paused",
            [
                "qmpsnap cont resumes it. Look at qmpsnap jobs first: interrupted work may have",
                "    left it paused",
            ],
        ),
    ],
)
def test_flow_breaks_between_words_and_no_command_line(text, lines):
    assert wrap(text) == lines


def test_picture_breaks_before_an_arrow():
    drawing = " <- ".join(f"[layer {number}]" for number in range(9))
    assert chain_lines("vda", drawing) == [
        "vda: [layer 0] <- [layer 1] <- [layer 2] <- [layer 3] <- [layer 4] <- [layer 5]",
        "    <- [layer 6] <- [layer 7] <- [layer 8]",
    ]


def test_near_is_relative_below_this_directory_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = (f"{tmp_path}/a/b", f"{tmp_path}-2/b", "/d/a", "nbd://h/x", "")
    assert [relative(file) for file in files] == ["a/b", f"{tmp_path}-2/b", "/d/a", "nbd://h/x", ""]


def test_moved_says_what_to_start_from():
    assert start_lines({"vda": "/d/a b.qcow2"}) == ["from now on, start vda from /d/a b.qcow2"]


def test_tell_breaks_lines_on_a_terminal_alone(capsys, monkeypatch):
    line = (
        "qmpsnap: refused: the chain of vda is held by another job, which is of another client, and running"
    )
    to_stderr(line)
    assert capsys.readouterr().err == f"{line}\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    to_stderr(line)
    assert capsys.readouterr().err.splitlines() == [
        "qmpsnap: refused: the chain of vda is held by another job, which is of another",
        "    client, and running",
    ]


def test_message_is_shortened_but_a_result_that_cannot_be_written_is_not(capsys, monkeypatch):
    to_stderr(f"no {10_000 * 'x'}")
    assert capsys.readouterr().err == f"no {200 * 'x'}[... 9600 characters left out ...]{200 * 'x'}\n"
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(Unwritable):
        emit(10_000 * "x")
    assert capsys.readouterr().err.splitlines()[1:] == [10_000 * "x"]
