"""For all of tests/: one environment (`environment.py`), and nothing that was loaded is collected.

Every event loop that ends, and every look for what a test leaves, walks through all that is not: of
the suite's time that was the larger part.
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import pytest

from tests.environment import settle

if TYPE_CHECKING:
    from collections.abc import Iterator

settle()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)  # a test's garbage is small, and gone with it


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command line configures the loggers of its process, which is the tests' own."""
    loggers = [logging.getLogger(name) for name in ("qemu.qmp", "qmpsnap", "asyncio")]
    before = [(one, list(one.handlers), one.level, one.propagate) for one in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        if logger.level != level:
            logger.setLevel(level)
