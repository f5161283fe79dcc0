"""The machines of a session, and the loop that they live in."""

from __future__ import annotations

import anyio

from qmpsnap.testing.shared.pool import Pool


def test_pool_ends_although_a_call_that_a_test_has_left_has_not():
    with Pool() as pool:
        left = pool._portal.start_task_soon(anyio.sleep_forever)
    assert left.cancelled()
