"""Loggers of structlog that end in the standard library's logging, unless structlog has been configured.

Nothing is configured here. An unconfigured structlog would print to stdout, where results go; instead its
messages are records of `logging.getLogger("qmpsnap")`. A record reads `step.done op=commit elapsed=0.1`;
`event` and every fact are also attributes of it (`extra`), so a fact must not have the name of an attribute
of `logging.LogRecord` (name, args, process, module, ...).

structlog is imported with the first message that is not discarded: it takes half as long as all other
imports.
"""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from qmpsnap.model.printable import printable

if TYPE_CHECKING:
    from structlog.processors import LogfmtRenderer
    from structlog.stdlib import BoundLogger
    from structlog.typing import EventDict, Processor


_CALLER = 4  # frames from the caller of structlog's logger to that of the standard library

logging.getLogger("qmpsnap").addHandler(logging.NullHandler())


def get_logger(name: str) -> BoundLogger:
    """Return the logger of that name, which is "qmpsnap" or starts with "qmpsnap."."""
    return cast("BoundLogger", _Lazy(name))


class _Lazy:
    """Asks structlog for a logger with each message, since the application may configure it at any time."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401 - a method of the class that the application chooses
        if method.startswith("_"):
            raise AttributeError(method)
        level = logging.getLevelNamesMapping().get(method.upper(), logging.CRITICAL)
        if "structlog" not in sys.modules and not self._logger.isEnabledFor(level):
            return _discard
        import structlog  # noqa: PLC0415 - the module's docstring says why

        if _is_configured():
            logger = structlog.get_logger(self._logger.name)
        else:
            to_record = partial(_to_record, structlog.processors.LogfmtRenderer(key_order=["event"]))
            processors: list[Processor] = [structlog.stdlib.filter_by_level, to_record]
            logger = structlog.wrap_logger(self._logger, processors, structlog.stdlib.BoundLogger)
        return getattr(logger, method)


def _discard(event: str, **facts: object) -> None:
    """Discard a message of a level that is not enabled."""


def _is_configured() -> bool:
    """Whether the application has configured structlog, or a test captures its messages.

    `structlog.is_configured()` alone will not do: it stays true after `capture_logs`, with the defaults back.
    """
    structlog = sys.modules["structlog"]
    config, builtin = structlog.get_config(), vars(structlog._config)  # noqa: SLF001 - not public
    return structlog.is_configured() and any(
        config[key] != builtin.get(f"_BUILTIN_DEFAULT_{key.upper()}")
        for key in ("processors", "wrapper_class", "logger_factory")
    )


def _to_record(
    render: LogfmtRenderer, logger: logging.Logger, method: str, event: EventDict
) -> dict[str, object]:
    """Last processor: the arguments of a method of `logging.Logger`."""
    text = printable(render(logger, method, {**event})).removeprefix("event=")
    return {"msg": text, "extra": event, "stacklevel": _CALLER}
