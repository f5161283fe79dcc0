"""The operation that a command belongs to: operations share one link, and one of them may be abandoned."""

from __future__ import annotations

from contextvars import ContextVar

CURRENT_OPERATION: ContextVar[object] = ContextVar("qmpsnap_owner", default=None)
"""The operation that this task, and every task that it starts, works for; None: none."""
