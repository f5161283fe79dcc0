from __future__ import annotations

import pytest

from qmpsnap.plan.intent import Prune


def test_prune_says_all_that_can_be_said(intent):
    assert intent("prune", "--keep-last", "7") == Prune(keep_last=7)
    assert intent(
        "prune", "--max-depth", "3", "--disk", "vda", "--disk", "vdb", "--keep-files", "--look-in", "/a"
    ) == Prune(max_depth=3, disks=("vda", "vdb"), keep_files=True, look_in=("/a",))


@pytest.mark.parametrize("words", [[], ["--keep-last", "1", "--max-depth", "1"], ["--keep-last", "0"]])
def test_prune_without_one_rule_is_a_usage_error(machine, words):
    assert machine("prune", *words).code == 2
