"""Loggers that speak structlog and end in the standard library's logging.

Nothing is configured here, and nothing needs to be: an unconfigured structlog would print to
stdout, where results go. The embedder decides by `logging.getLogger("qmpsnap")`; every fact of
a message is a field of the record (`extra`), so a field must not have the name of an attribute
of `logging.LogRecord` (name, args, process, module, ...).

structlog is imported with the first message that somebody reads: importing it takes as long as all
the rest of qmpsnap.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import structlog
    from structlog.typing import EventDict

__all__ = ["Logger", "get_logger"]

logging.getLogger("qmpsnap").addHandler(logging.NullHandler())


class Logger:
    """Debug, info and warning messages with facts in fields.

    Messages of a level that nobody asked for cost one comparison.
    `structlog.testing.capture_logs` sees every message, of whatever level.

    Args:
        name: Dotted name that starts with "qmpsnap.".
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._bound: structlog.stdlib.BoundLogger | None = None

    def debug(self, event: str, **facts: object) -> None:
        """Say what helps to find an error."""
        if self._wanted(logging.DEBUG):
            self._get().debug(event, **facts)

    def info(self, event: str, **facts: object) -> None:
        """Say what was done."""
        if self._wanted(logging.INFO):
            self._get().info(event, **facts)

    def warning(self, event: str, **facts: object) -> None:
        """Say that we go on, and what should be known."""
        if self._wanted(logging.WARNING):
            self._get().warning(event, **facts)

    def _wanted(self, level: int) -> bool:
        return self._logger.isEnabledFor(level) or "structlog.testing" in sys.modules

    def _get(self) -> structlog.stdlib.BoundLogger:
        if self._bound is None:
            import structlog  # noqa: PLC0415 - the module's docstring says why

            self._bound = cast(
                "structlog.stdlib.BoundLogger",
                structlog.wrap_logger(
                    self._logger,
                    processors=[
                        _captured,
                        structlog.stdlib.filter_by_level,
                        structlog.stdlib.render_to_log_kwargs,
                    ],
                    wrapper_class=structlog.stdlib.BoundLogger,
                ),
            )
        return self._bound


def get_logger(name: str) -> Logger:
    """Return the logger of that name, below "qmpsnap"."""
    return Logger(name)


def _captured(logger: logging.Logger, method: str, event: EventDict) -> EventDict:
    """Hand the message to `capture_logs` when a test has it open.

    capture_logs replaces the configured processors, and ours are given, not configured.
    """
    testing = sys.modules.get("structlog.testing")
    if testing is not None:
        for processor in sys.modules["structlog"].get_config()["processors"]:
            if isinstance(processor, testing.LogCapture):
                processor(logger, method, event)
    return event
