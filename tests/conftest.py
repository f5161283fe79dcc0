"""For all of tests/: one environment (`environment.py`), and nothing that was loaded is collected.

Every event loop that ends, and every look for what a test leaves, walks through all that is not: of
the suite's time that was the larger part.
"""

from __future__ import annotations

import gc

from tests.environment import settle

settle()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
