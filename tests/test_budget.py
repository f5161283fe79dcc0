"""scripts/budget.py: a command that takes far too long fails, and a busy machine is no reason."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from tests.each import each

SCRIPT = Path(__file__).parents[1] / "scripts/budget.py"
WITHIN = {"elapsed": 17.0, "cpu": 35.0, "others": 0.0, "seconds": 12.0, "cpu_seconds": 24.0, "slow": 1.0}
FACTS = {
    "within half again": ({}, ""),
    "computes too long": ({"cpu": 37.0}, "37 s of processor time, budget 24"),
    "computes too long on a busy machine": (
        {"cpu": 37.0, "elapsed": 60.0, "others": 0.5},
        "37 s of processor time, budget 24",
    ),
    "waits too long": ({"elapsed": 19.0}, "19 s, budget 12"),
    "is slow as the machine is busy": ({"elapsed": 60.0, "others": 0.5}, ""),
    "is slow as the machine is slow": ({"elapsed": 34.0, "cpu": 70.0, "slow": 2.0}, ""),
    "is too slow for a slow machine": ({"elapsed": 37.0, "slow": 2.0}, "37 s, budget 24"),
}


@each("name", FACTS)
def test_verdict(name):
    facts, wanted = FACTS[name]
    assert runpy.run_path(str(SCRIPT))["verdict"](**(WITHIN | facts)) == wanted


@each(
    ("environment", "cpu_seconds", "program", "code"),
    [
        ({}, "100", "sum(range(10**6))", 0),
        ({}, "0.001", "sum(range(10**6))", 1),
        ({"QMPSNAP_BUDGET": "no"}, "0.001", "sum(range(10**6))", 0),
        ({}, "0.001", "raise SystemExit(7)", 7),
    ],
)
def test_exit_code_is_the_commands_unless_that_was_good_and_took_too_long(
    environment, cpu_seconds, program, code
):
    words = [sys.executable, SCRIPT, "it", "1000", cpu_seconds, sys.executable, "-c", program]
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("== it took ")
