"""That a table's rows are all checked, and all that failed are named."""

from __future__ import annotations

import asyncio
from inspect import signature

import pytest

from tests.each import each


def test_each_calls_the_test_with_every_row_and_names_those_that_failed():
    called = []

    @each(("number", "text"), [(1, "a"), (2, "b"), (3, "c")])
    def check(number, text, tmp_path):
        called.append((number, text, tmp_path))
        assert number == 2

    assert list(signature(check).parameters) == ["tmp_path"]
    with pytest.raises(ExceptionGroup, match="2 failed") as caught:
        check(tmp_path="/t")
    assert called == [(1, "a", "/t"), (2, "b", "/t"), (3, "c", "/t")]
    assert [error.__notes__ for error in caught.value.exceptions] == [
        ["at {'number': 1, 'text': 'a'}"],
        ["at {'number': 3, 'text': 'c'}"],
    ]


def test_each_awaits_a_test_that_is_a_coroutine():
    @each("number", [1, 2])
    async def check(number):
        await asyncio.sleep(0)
        assert number == 1

    with pytest.raises(ExceptionGroup, match="1 failed"):
        asyncio.run(check())


def test_each_counts_an_error_that_was_not_raised():
    @each("number", [1])
    def check(number):
        with pytest.raises(ValueError, match=str(number)):
            pass

    with pytest.raises(ExceptionGroup, match="1 failed"):
        check()


@each(("names", "rows"), [("number", []), ("other", [1]), (("number", "text"), [(1,)])])
def test_each_is_not_made_of_a_table_that_does_not_fit(names, rows):
    def check(number):
        raise AssertionError(number)

    with pytest.raises(ValueError, match=r"rows|take|shorter"):
        each(names, rows)(check)
