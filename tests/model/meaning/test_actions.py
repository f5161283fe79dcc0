from __future__ import annotations

import ast
from pathlib import Path

import qmpsnap
from qmpsnap.model.meaning.actions import ACTIONS

COMMANDS = Path(qmpsnap.__file__).parent / "plan" / "commands"


def actions():
    """What the builders of steps call their actions and waits; those of one builder are a job's types."""
    for path in COMMANDS.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            given = {key.arg: ast.unparse(key.value) for key in call.keywords}
            if call.func.id == "_make" and isinstance(call.args[0], ast.Constant):
                yield call.args[0].value
            elif call.func.id == "Step" and given["on"] in {"'host'", "'wait'"}:
                yield given["command"].strip("'")


def test_every_action_and_wait_of_a_plan_has_a_meaning_and_no_other():
    assert {*actions()} - {"command"} | {"snapshot-save", "snapshot-load"} == set(ACTIONS)
