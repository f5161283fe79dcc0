from __future__ import annotations

import re

from qmpsnap.model.picture.boxes import Box, Edge, Panel
from qmpsnap.model.picture.mermaid import mermaid
from tests.each import each

from .hostile import NAMES, picture

TEXT = r"(?:[\w ./:,()-]|#\d+;|<br/>)*"
NODE = rf'    p\d+_\d+(?:\["{TEXT}"\]|>"{TEXT}"\]|{{{{"{TEXT}"}}}})(?::::\w+)?'
LINE = re.compile(
    rf'flowchart TB|  %% {TEXT}|  subgraph p\d+\["{TEXT}"\]|{NODE}|    p\d+_\d+ --> p\d+_\d+|  end'
    r"|  classDef \w+ [a-z:#0-9, -]+"
)


def test_mermaid_draws_each_panel_as_a_subgraph() -> None:
    panel = Panel(
        "vda",
        (
            Box("throttle", "thr", ("throttle",), "filter"),
            Box("top", "top.qcow2", ("active layer",), "active"),
            Box("base", "base_1.qcow2"),
        ),
        (Edge("throttle", "top"), Edge("top", "base"), Edge("job", "base")),
        (Box("job", "commit, 54%", kind="job"),),
    )
    assert mermaid("vda: 2 layers", [[panel]]).splitlines() == [
        "flowchart TB",
        "  %% vda: 2 layers",
        '  subgraph p0["vda"]',
        '    p0_0{{"thr<br/>throttle"}}:::filter',
        '    p0_1["top.qcow2<br/>active layer"]:::active',
        '    p0_2["base_1.qcow2"]',
        '    p0_3>"commit, 54#37;"]:::job',
        "    p0_0 --> p0_1",
        "    p0_1 --> p0_2",
        "    p0_3 --> p0_2",
        "  end",
        "  classDef active stroke:#0969da,stroke-width:3px",
        "  classDef filter stroke:#8250df",
        "  classDef job stroke:#9a6700",
    ]


def test_mermaid_stays_in_the_grammar_whatever_a_name_contains() -> None:
    text = mermaid("\n".join(NAMES), picture())
    assert [line for line in text.splitlines() if not LINE.fullmatch(line)] == []


@each(
    ("name", "written"),
    [
        ("_a_b_", "#95;a_b#95;"),
        ("1. a", "1#46; a"),
        ("1.a", "1.a"),
        ("- a", "#45; a"),
        ("a-b", "a-b"),
        ("&lt;", "#38;lt#59;"),
        ("#1;", "#35;1#59;"),
    ],
)
def test_mermaid_writes_as_a_number_what_could_be_markup(name: str, written: str) -> None:
    assert f'p0_0["{written}"]' in mermaid("", [[Panel("", (Box("1", name),))]])
