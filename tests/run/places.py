"""One check at many places of a plan, which reports every place at which it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.each import all_failures

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from qmpsnap.plan.plan import Plan


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
    tried = tuple(places)
    assert tried, f"{plan.op} has no step to check this at"
    with all_failures() as checked:
        for place in tried:
            with checked(f"step {place} of {plan.op}, {plan.steps[place].command} {what}"):
                await check(place)
