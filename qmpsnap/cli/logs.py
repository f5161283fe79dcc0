"""Logs on stderr, as -v asks for them. Only the command line configures logging."""

from __future__ import annotations

import json
import logging
import sys

from qmpsnap.model.printable import printable
from qmpsnap.model.secrets import SessionSecrets, masked, without_passwords

_SHOWN = frozenset({"machine.started_below", "layer.name_lost"})  # printed by the verbs themselves
_SENT, _RECEIVED = "--> ", "<-- "


def configure(verbose: int) -> None:
    """Send logs to stderr: warnings; from -v each step; from -vv the QMP traffic as well."""
    logger = logging.getLogger("qmpsnap")
    for old in [handler for handler in logger.handlers if isinstance(handler, _ToStderr)]:
        logger.removeHandler(old)
    logger.addHandler(handler := _ToStderr())
    handler.setFormatter(_Fields())
    handler.addFilter(lambda record: verbose > 0 or vars(record).get("event") not in _SHOWN)
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG))
    # qemu.qmp also logs the errors that it raises and that we print.
    wire = logging.getLogger("qemu.qmp")
    wire.propagate = False
    wire.handlers.clear()
    wire.addHandler(traffic := _ToStderr())
    traffic.setFormatter(_Traffic())
    traffic.addFilter(lambda record: record.msg.startswith((_SENT, _RECEIVED)))
    wire.setLevel(logging.DEBUG if verbose >= 2 else logging.CRITICAL + 1)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the command line reports errors itself


class _ToStderr(logging.Handler):
    """Writes to the current sys.stderr, so that it does not overwrite a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(printable(self.format(record)), file=sys.stderr, flush=True)  # noqa: T201 - a log


class _Fields(logging.Formatter):
    """`12:00:00.123 info step.done op=commit elapsed=0.1`."""

    def format(self, record: logging.LogRecord) -> str:
        time = f"{self.formatTime(record, '%H:%M:%S')}.{record.msecs:03.0f}"
        return " ".join([time, record.levelname.lower(), record.getMessage()])


class _Traffic(logging.Formatter):
    """One QMP message per line, its secrets masked as in a record; qemu.qmp logs each on several lines."""

    def __init__(self) -> None:
        super().__init__()
        self._secrets: dict[object, SessionSecrets] = {}  # of each connection, or of each logger of others

    def format(self, record: logging.LogRecord) -> str:
        text = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        try:
            text = self._shown(json.loads(text), record)
        except ValueError:
            text = printable(" ".join(text.split()))
        return f"{record.msg[:3]} {masked(text)}"

    def _shown(self, message: object, record: logging.LogRecord) -> str:
        if isinstance(message, dict):
            connection = vars(record).get("connection", record.name)
            secrets = self._secrets.setdefault(connection, SessionSecrets())
            shown = secrets.sent(message) if record.msg.startswith(_SENT) else secrets.received(message)
            message = dict(shown)
        return without_passwords(json.dumps(message))
