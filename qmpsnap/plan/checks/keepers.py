"""Images that only show that a layer is needed: what to say about them, and the removal of abandoned ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import assert_never

from qmpsnap.model.files import Files
from qmpsnap.model.hints import command
from qmpsnap.model.keeper import Keeper, KeptFor
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.files import remove_orphan
from qmpsnap.plan.plan import Plan


def named(files: Files, by: Iterable[str]) -> list[str]:
    """The images that are based on a layer, each with what it is for if that is known."""
    return [f"{file} ({files.keepers[file]})" if file in files.keepers else file for file in by]


def ways(files: Files, by: Iterable[str]) -> list[str]:
    """What to do about those that only show that a layer is needed; none if there are none."""
    found: dict[KeptFor, str] = {}
    for file in by:
        keeper = files.keepers.get(file)
        if keeper is not None:
            found.setdefault(keeper.owner, _way(file, keeper))
    return list(found.values())


def _way(file: str, keeper: Keeper) -> str:
    owner = keeper.owner
    if keeper.state == "gone":
        return f"if nobody has moved {owner}: {command('template', '--remove', file)}"
    match owner.kind:
        case "template":
            return f"remove {owner}: {command('template', '--remove', owner.directory)}"
        case "clone":
            return f"remove {owner}, then: {command('template', '--remove', file)}"
        case "fork":
            return f"wait until the {owner} have ended"
        case _:
            assert_never(owner.kind)


def without_abandoned(plan: Plan, files: Files) -> Plan:
    """The plan, which first removes those images that a killed process has left."""
    left = {file: keeper for file, keeper in files.keepers.items() if keeper.state == "left" and keeper.layer}
    if not left:
        return plan
    steps = tuple(remove_orphan(file, keeper.layer) for file, keeper in left.items())
    stage = Stage("remove what a killed process has left", steps)
    note = f"a process that was killed has left {', '.join(left)}, which nothing needs: removed"
    return replace(plan, stages=(stage, *plan.stages), notes=(*plan.notes, note))
