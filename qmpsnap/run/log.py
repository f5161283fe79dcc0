"""Loggers that speak structlog and end in the standard library's logging.

Nothing is configured here, and nothing needs to be: an unconfigured structlog would print to
stdout, where results go. The embedder decides by `logging.getLogger("qmpsnap")`: a record's message is
`step.done op=commit elapsed=0.1`, and `event` and every fact are fields of the record besides (`extra`), so
a fact must not have the name of an attribute of `logging.LogRecord` (name, args, process, module, ...).
Where the application has configured structlog, that is used instead, with all that it does.

structlog is imported with the first message that somebody reads: importing it takes as long as all
the rest of qmpsnap.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import structlog
    from structlog.typing import EventDict

__all__ = ["Logger", "get_logger"]

logging.getLogger("qmpsnap").addHandler(logging.NullHandler())


class Logger:
    """Debug, info and warning messages with facts in fields.

    Messages of a level that nobody asked for cost a comparison or two.
    `structlog.testing.capture_logs` sees every message, of whatever level.

    Args:
        name: Dotted name that starts with "qmpsnap.".
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._bound: structlog.stdlib.BoundLogger | None = None

    def debug(self, event: str, **facts: object) -> None:
        """Say what helps to find an error."""
        if (logger := self._for(logging.DEBUG)) is not None:
            logger.debug(event, **facts)

    def info(self, event: str, **facts: object) -> None:
        """Say what was done."""
        if (logger := self._for(logging.INFO)) is not None:
            logger.info(event, **facts)

    def warning(self, event: str, **facts: object) -> None:
        """Say that we go on, and what should be known."""
        if (logger := self._for(logging.WARNING)) is not None:
            logger.warning(event, **facts)

    def _for(self, level: int) -> Any:  # noqa: ANN401 - of whatever class the application has chosen
        """Who takes messages of that level; None: nobody."""
        if "structlog" in sys.modules and _is_configured():
            return sys.modules["structlog"].get_logger(self._logger.name)
        return self._get() if self._logger.isEnabledFor(level) else None

    def _get(self) -> structlog.stdlib.BoundLogger:
        if self._bound is None:
            import structlog  # noqa: PLC0415 - the module's docstring says why

            self._bound = cast(
                "structlog.stdlib.BoundLogger",
                structlog.wrap_logger(
                    self._logger,
                    processors=[structlog.stdlib.filter_by_level, _to_record],
                    wrapper_class=structlog.stdlib.BoundLogger,
                ),
            )
        return self._bound


def get_logger(name: str) -> Logger:
    """Return the logger of that name, below "qmpsnap"."""
    return Logger(name)


def _is_configured() -> bool:
    """Whether the application has configured structlog, or a test captures its messages.

    structlog calls itself configured for good once `capture_logs` was used, and would print to stdout then.
    """
    structlog = sys.modules["structlog"]
    if not structlog.is_configured():
        return False
    now, builtin = structlog.get_config(), vars(structlog._config)  # noqa: SLF001 - there is no other way
    return bool(
        list(now["processors"]) != list(builtin["_BUILTIN_DEFAULT_PROCESSORS"])
        or now["wrapper_class"] is not builtin["_BUILTIN_DEFAULT_WRAPPER_CLASS"]
        or now["logger_factory"] is not builtin["_BUILTIN_DEFAULT_LOGGER_FACTORY"]
    )


def _to_record(
    logger: logging.Logger, method: str, event: EventDict
) -> tuple[tuple[str], dict[str, dict[str, object]]]:
    """Last processor: the message with its facts as a text, and each of them as a field."""
    del logger, method
    facts = {key: value for key, value in event.items() if key != "event"}
    text = " ".join([str(event["event"]), *(f"{key}={_value(value)}" for key, value in facts.items())])
    return (text,), {"extra": dict(event)}


def _value(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and " " not in text and '"' not in text else json.dumps(text)
