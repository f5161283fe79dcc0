"""Writes each message of a QMP session into a file: one JSON object a line, in the order of the wire.

    {"qmpsnap": "record", "version": 1, "at": 1764465376.25}
    {"time": 0.000512, "at": 1764465376.25, "from": "qemu", "message": {"QMP": {...}}}
    {"time": 0.000741, "at": 1764465376.25, "from": "client", "message": {"execute": ...}}

`time` is in seconds since the record's beginning, by a monotonic clock, and `at` is the time of day, in
seconds since 1970. If the file can no longer be written, the session goes on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qmpsnap.errors import TargetExists
from qmpsnap.model.secrets import PASSWORD_MARKS, SessionSecrets, without_passwords
from qmpsnap.run.log import get_logger
from qmpsnap.run.os_errors import reason, unusable
from qmpsnap.run.safe_open import create_file

if TYPE_CHECKING:
    from qemu.qmp import Message

_log = get_logger("qmpsnap.session")


class Recorder:
    """The record of a session and of its reconnections after a lost link; made by `recording`.

    Args:
        file: Its path, for messages.
        descriptor: The file, open for writing; None after a write has failed.
    """

    def __init__(self, file: str, descriptor: int) -> None:
        self._file = file
        self._descriptor: int | None = descriptor
        self._started = time.monotonic()
        self._secrets = SessionSecrets()
        self._write(b'{"qmpsnap": "record", "version": 1, "at": %.6f}\n' % time.time())

    def record_sent(self, message: Message) -> None:
        """Record a command, with its secrets masked."""
        if "arguments" not in message:
            self._line(b"client", bytes(message))  # which is sent next
            return
        self._line(b"client", json.dumps(self._secrets.sent(message)).encode())

    def record_received(self, message: Message) -> None:
        """Record a greeting, a reply or an event; if it is ASCII, byte for byte as received."""
        raw, shown = bytes(message).strip(), self._secrets.received(message)
        if shown is not message or not raw.isascii():
            raw = json.dumps(dict(shown)).encode()
        if any(mark in raw for mark in PASSWORD_MARKS):
            raw = without_passwords(raw.decode()).encode()
        self._line(b"qemu", raw)

    def close(self) -> None:
        """Write nothing more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _line(self, side: bytes, message: bytes) -> None:
        passed = time.monotonic() - self._started
        self._write(
            b'{"time": %.6f, "at": %.6f, "from": "%s", "message": %s}\n'
            % (passed, time.time(), side, message)
        )

    def _write(self, data: bytes) -> None:
        """Write a whole line at once, without a buffer; a failure ends the record."""
        if self._descriptor is None:
            return
        try:
            written = os.write(self._descriptor, data)
            if written < len(data):  # the disk is full now: the rest fails
                os.write(self._descriptor, data[written:])
        except OSError as error:
            self.close()
            _log.warning("record.stopped", file=self._file, reason=reason(error))


@contextmanager
def recording(file: str | None) -> Iterator[Recorder | None]:
    """Create a record that is written until the end of the block; without a file return None.

    Args:
        file: Its path; it gets mode 0600.

    Raises:
        TargetExists: When there is anything of that name.
        InvalidTarget: When it cannot be created.
    """
    if file is None:
        yield None
        return
    try:
        descriptor = create_file(file)
    except FileExistsError as error:
        raise TargetExists(
            f"{file!r} exists", file=file, hint="choose another name for the record"
        ) from error
    except (OSError, ValueError) as error:
        raise unusable(file, error, "create") from error
    recorder = Recorder(file, descriptor)
    try:
        yield recorder
    finally:
        recorder.close()
