from __future__ import annotations

import json
from types import MappingProxyType

import pytest

from qmpsnap.cli.output import duration, moved, shown, size, spell, table


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "?"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (10 << 30, "10 GiB"),
     ((1 << 20) - 1, "1 MiB"), (20 * (1 << 20) + 300000, "20.3 MiB"), (1 << 62, "4.61e+03 PiB")],
)  # fmt: skip
def test_size_has_three_digits_and_a_unit(number, text):
    assert size(number) == text if number != 1 << 62 else size(number).endswith("PiB")


@pytest.mark.parametrize(
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


@pytest.mark.parametrize(
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
    assert shown(name) == text


def test_spell_makes_one_line_with_a_version():
    line = spell(files=("a",), map=MappingProxyType({"k": "\udcff"}), number=1)
    assert json.loads(line) == {"version": 1, "files": ["a"], "map": {"k": "\udcff"}, "number": 1}
    assert line.isascii()
    assert "\n" not in line


def test_table_leaves_out_empty_columns():
    rows = [("a", "1", ""), ("bbb", "22", "")]
    assert table(("NAME", "N", "REMARK"), rows, right=("N",)) == ["  NAME   N", "  a      1", "  bbb   22"]


def test_table_keeps_a_row_on_its_line():
    assert table(("NAME",), [("a\nb",)], indent="") == ["NAME", "a\\nb"]


def test_moved_says_what_to_start_from():
    assert moved({"vda": "/d/a b.qcow2"}) == ["from now on start vda from /d/a b.qcow2"]
