from __future__ import annotations

import re
from pathlib import Path

import pytest

from qmpsnap.model.graph import Graph
from qmpsnap.model.meaning.findings import FINDINGS
from qmpsnap.plan.diagnosis.rules import RULES, Rule, diagnose
from qmpsnap.testing.drawing import graph
from tests.plan.diagnosis.look import CHAIN, facts

PAGE = Path(__file__).parents[3] / "docs" / "howto" / "troubles.md"


@pytest.mark.parametrize("there", [CHAIN, graph(), graph(vda="base <- s1*", vdb="data.raw <- t1*")])
def test_a_machine_that_is_well_is_healthy(there: Graph) -> None:
    assert diagnose(facts(there)) == ()
    assert diagnose(facts(there, status=None)) == ()  # and its images, when it is off


def test_troubles_come_before_limits() -> None:
    limits = [rule.severity == "limit" for rule in RULES]
    assert limits == sorted(limits)


def test_each_finding_has_a_meaning_and_no_other_word_has() -> None:
    assert {rule.code for rule in RULES} == set(FINDINGS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.code}-{rule.look.__name__}")
def test_each_rule_says_what_it_is_and_has_its_section(rule: Rule) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.code)
    assert rule.what.endswith(".")
    assert f"\n## {rule.code}\n" in PAGE.read_text()
