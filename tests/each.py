"""One test for all rows of a table: it is called with each, and fails once, with every row that failed.

`pytest.mark.parametrize` makes a test of each row, which costs more than most of our rows do. It is for rows
that need a fixture of their own; `each` is for those that need none.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager


@contextmanager
def all_failures() -> Iterator[Callable[[object], AbstractContextManager[None]]]:
    """Go on after a check that failed; what it gives takes a name for each check.

    Raises:
        ExceptionGroup: At the end, when a check failed: of all that did, each with its name.
    """
    failures: list[Exception] = []

    @contextmanager
    def checked(name: object) -> Iterator[None]:
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - raised at the end
            failure = error if isinstance(error, Exception) else AssertionError(str(error))
            failure.add_note(f"at {name}")
            failures.append(failure)

    yield checked
    if failures:
        raise ExceptionGroup(f"{len(failures)} failed", failures)


def each(
    names: str | tuple[str, ...], rows: Iterable[Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Call the test with each row; fixtures that it takes beside are the same for all.

    Args:
        names: The arguments that a row gives: one name, or a tuple of names.
        rows: A value for the name, or a tuple of values for the names; at least one row.

    Raises:
        ValueError: When the table has no rows, or does not fit the names or the test.
    """
    if isinstance(names, str):
        names, rows = (names,), [(value,) for value in rows]
    table = [dict(zip(names, row, strict=True)) for row in rows]
    if not table:
        raise ValueError("a table without rows checks nothing")

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(test)
        if not signature.parameters.keys() >= {*names}:
            raise ValueError(f"{test.__name__} does not take {names}")

        @functools.wraps(test)
        def all_rows(**fixtures: object) -> None:
            with all_failures() as checked:
                for row in table:
                    with checked(row):
                        test(**fixtures, **row)

        @functools.wraps(test)
        async def all_rows_awaited(**fixtures: object) -> None:
            with all_failures() as checked:
                for row in table:
                    with checked(row):
                        await test(**fixtures, **row)

        wrapper: Callable[..., Any] = all_rows_awaited if inspect.iscoroutinefunction(test) else all_rows
        others = [parameter for name, parameter in signature.parameters.items() if name not in names]
        wrapper.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return wrapper

    return decorate
