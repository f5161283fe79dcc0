"""For all of tests/: what was loaded with the tests is left out of garbage collection.

Every event loop that ends, and every look for what a test leaves, walks through all that is not: of
the suite's time that was the larger part.
"""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
