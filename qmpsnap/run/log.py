"""Loggers that speak structlog and end in the standard library's logging.

Nothing is configured here, and nothing needs to be: an unconfigured structlog would print to
stdout, where results go. The embedder decides by `logging.getLogger("qmpsnap")`; every fact of
a message is a field of the record (`extra`), so a field must not have the name of an attribute
of `logging.LogRecord` (name, args, process, module, ...).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, cast

import structlog
import structlog.testing

if TYPE_CHECKING:
    from structlog.typing import EventDict

__all__ = ["get_logger"]

logging.getLogger("qmpsnap").addHandler(logging.NullHandler())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of that name, below "qmpsnap".

    Messages of a level that nobody asked for cost one comparison.
    `structlog.testing.capture_logs` sees every message, of whatever level.

    Args:
        name: Dotted name that starts with "qmpsnap.".
    """
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            processors=[_captured, structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
            wrapper_class=structlog.stdlib.BoundLogger,
        ),
    )


def _captured(logger: logging.Logger, method: str, event: EventDict) -> EventDict:
    """Hand the message to `capture_logs` when a test has it open.

    capture_logs replaces the configured processors, and ours are given, not configured.
    """
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, structlog.testing.LogCapture):
            processor(logger, method, event)
    return event
