from __future__ import annotations

import re

from qmpsnap.model.picture.boxes import Box, Edge, Panel
from qmpsnap.model.picture.dot import dot

from .hostile import NAMES, picture

STRING = r'"(?:[^"\\\n]|\\.)*"'
ATTRIBUTES = rf"\w+=(?:{STRING}|\w+)(?:[,;] \w+=(?:{STRING}|\w+))*"
LINE = re.compile(
    rf"digraph qmpsnap {{|}}|  {ATTRIBUTES};|  node \[{ATTRIBUTES}\];|  subgraph cluster_\d+ {{"
    rf"|    label={STRING};|    p\d+_\d+ \[{ATTRIBUTES}\];|    p\d+_\d+ -> p\d+_\d+;|  }}"
)


def test_dot_draws_each_panel_as_a_cluster() -> None:
    panel = Panel(
        "vda",
        (
            Box("top", "top.qcow2", ("active layer",), "active", full="/d/top.qcow2"),
            Box("base", "base.qcow2"),
        ),
        (Edge("top", "base"), Edge("job", "base")),
        (Box("job", "commit, 54%", kind="job"),),
    )
    assert dot("vda", [[panel]]).splitlines() == [
        "digraph qmpsnap {",
        '  tooltip="vda"; fontname=monospace;',
        "  node [shape=box, style=rounded, fontname=monospace, fontsize=11];",
        "  subgraph cluster_0 {",
        '    label="vda";',
        r'    p0_0 [label="top.qcow2\nactive layer", tooltip="/d/top.qcow2", color="#0969da", penwidth=2];',
        '    p0_1 [label="base.qcow2", tooltip="base.qcow2"];',
        '    p0_2 [label="commit, 54%", tooltip="commit, 54%", shape=note, color="#9a6700", style=""];',
        "    p0_0 -> p0_1;",
        "    p0_2 -> p0_1;",
        "  }",
        "}",
    ]


def test_dot_stays_in_the_grammar_whatever_a_name_contains() -> None:
    text = dot("\n".join(NAMES), picture())
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []
    assert text.isascii() or all(line.isprintable() for line in text.splitlines())


def test_dot_shows_the_characters_that_graphviz_reads() -> None:
    (line,) = [
        line
        for line in dot("", [[Panel("", (Box("1", 'a"b&lt;c\\n', full="x"),))]]).splitlines()
        if "p0_0 [" in line
    ]
    assert line == r'    p0_0 [label="a\"b&amp;lt;c\\n", tooltip="x"];'
