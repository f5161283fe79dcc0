from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.plan.chain.folding import Run, fewest, merged, ways
from tests.each import each

SIZES = st.lists(st.integers(0, 6), min_size=1, max_size=7)


def test_a_run_receives_into_its_biggest_layer_and_copies_the_others() -> None:
    assert merged([1, 9, 2, 4], {1, 2}) == (Run(0, 2, 1, 3),)


def test_of_equal_layers_the_oldest_receives() -> None:
    assert [run.receiver for run in ways([5, 5, 5], 0, 2)] == [2, 1, 0]


def test_what_something_stands_on_receives_whatever_it_costs() -> None:
    assert list(ways([1, 9, 2], 0, 2, {0})) == [Run(0, 2, 0, 11)]


def test_runs_that_do_not_touch_are_merged_each_for_itself_the_newest_first() -> None:
    assert merged([3, 1, 1, 3, 2], {1, 4}) == (Run(0, 1, 0, 1), Run(3, 4, 3, 2))


def test_without_a_boundary_to_remove_nothing_is_merged() -> None:
    assert merged([3, 1, 1], ()) == ()


@each(
    ("sizes", "depth", "removed"),
    [
        ([1, 1, 1, 1], 4, ()),
        ([1, 1, 1, 1], 3, (3,)),  # of equal ones the oldest
        ([1, 9, 9, 1], 3, (3,)),
        ([1, 5, 9, 2], 2, (1, 3)),
        ([4, 1, 1, 4], 1, (1, 2, 3)),
    ],
)
def test_fewest_removes_what_costs_least(sizes: list[int], depth: int, removed: tuple[int, ...]) -> None:
    assert fewest(sizes, {1, 2, 3}, depth) == frozenset(removed)


def test_fewest_goes_as_far_as_it_may() -> None:
    assert fewest([1, 1, 1, 1], {1}, 2) == {1}


@given(SIZES, st.sets(st.integers(1, 6)), st.sets(st.integers(0, 6)), st.integers(1, 7))
def test_fewest_copies_no_more_than_the_best_of_all_ways(
    sizes: list[int], free: set[int], needed: set[int], depth: int
) -> None:
    free = {index for index in free if index < len(sizes)}
    chosen = fewest(sizes, free, depth, needed)
    assert chosen <= free
    left = max(depth, len(sizes) - len(free))
    assert len(sizes) - len(chosen) <= left
    every = chain.from_iterable(combinations(free, count) for count in range(len(free) + 1))
    costs = [
        sum(run.copied for run in merged(sizes, gone, needed))
        for gone in every
        if len(sizes) - len(gone) <= left
    ]
    assert sum(run.copied for run in merged(sizes, chosen, needed)) == min(costs)
