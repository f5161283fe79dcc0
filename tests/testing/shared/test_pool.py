"""The machines of a session, and the loop that they live in."""

from __future__ import annotations

import anyio

from qmpsnap.testing.shared.pool import Pool
from tests.testing.forked import raised_in_fork


def test_pool_ends_although_a_call_that_a_test_has_left_has_not():
    with Pool() as pool:
        left = pool._calls.portal.start_task_soon(anyio.sleep_forever)
    assert left.cancelled()


def test_end_of_a_process_that_a_test_has_forked_leaves_the_pool_as_it_is():
    with Pool() as pool:
        (pool._directory / "file").touch()
        assert raised_in_fork(pool.__exit__) == "nothing"
        assert (pool._directory / "file").exists()
        assert pool._calls.portal.call(list) == []
