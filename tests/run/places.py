"""One check at many places of a plan, told of all at which it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from qmpsnap.plan.plan import Plan

__all__ = ["at_each"]


async def at_each(
    plan: Plan, places: Iterable[int], check: Callable[[int], Awaitable[None]], *, what: str = ""
) -> None:
    """Check at each place of the plan's steps; fail once, with every place at which the check failed.

    Args:
        plan: The plan.
        places: Indexes of its steps.
        check: Does it all anew for one place.
        what: What more tells this round from others.
    """
    failed: list[Exception] = []
    tried = tuple(places)
    assert tried, f"{plan.op} has no step to check this at"
    for place in tried:
        try:
            await check(place)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - all are told of below
            problem = error if isinstance(error, Exception) else AssertionError(str(error))
            problem.add_note(f"at step {place}, {plan.steps[place].command} {what}")
            failed.append(problem)
    if failed:
        raise ExceptionGroup(f"{plan.op} {what}", failed)
