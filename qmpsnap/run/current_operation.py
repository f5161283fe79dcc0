"""Whose commands are in flight: one link serves operations side by side, and one of them may be given up."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["CURRENT_OPERATION"]

CURRENT_OPERATION: ContextVar[object] = ContextVar("qmpsnap_owner", default=None)
"""The operation that this task, and every task that it starts, works for; None: none."""
