"""For all of tests/: one environment, and nothing that was loaded is collected (`environment.py`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.copies import tool_in
from tests.environment import freeze, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

settle()
# A busy machine stalls any example for longer than the 0.2 s that one may take.
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_finish() -> None:
    freeze()


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


@pytest.fixture
def tool_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """See `tool_in`."""
    return tool_in(tmp_path, monkeypatch)
