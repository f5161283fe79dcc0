"""VM state in a file of its own, as records tell of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.names import shortened

if TYPE_CHECKING:
    from qmpsnap.model.fields import Fields

__all__ = ["KeptState", "state_json", "state_of"]

_MODES = ("stop", "background", "in-place")


class KeptState(Struct, frozen=True):
    """VM state that is kept in a file of its own, with a moment of the disks.

    Attributes:
        mode: "stop", "background" (both: a stream, for a new QEMU) or "in-place" (a store, for any).
        file: The file, under the name that it has once it is whole.
        tag: Name of the snapshot inside the store; "" for a stream.
        running: Whether the guest ran.
        fingerprint: What the machine was.
        token: Eight hex digits of the operation, which tell whose an unfinished file is.
        inode: st_ino of the file as it was made; 0 until then, and in older records.
        user: Id of the owner that it had then, or None.
    """

    mode: str
    file: str
    tag: str
    running: bool
    fingerprint: Fingerprint
    token: str = ""
    inode: int = 0
    user: int | None = None

    @property
    def partial(self) -> str:
        """What the file is called until it is whole."""
        directory, slash, name = self.file.rpartition("/")
        return f"{directory}{slash}{shortened(name, f'.{self.token}.partial' if self.token else '.partial')}"


def state_json(state: KeptState | None) -> dict[str, object] | None:
    """What a record holds of it."""
    if state is None:
        return None
    return {
        "mode": state.mode,
        "file": state.file,
        "tag": state.tag,
        "running": state.running,
        "fingerprint": state.fingerprint.to_json(),
        "token": state.token,
        "inode": state.inode,
        "user": state.user,
    }


def state_of(fields: Fields) -> KeptState | None:
    """What a record tells of it; None when nothing.

    Raises:
        ValueError: When a field is missing or of the wrong shape.
    """
    if not fields.has("state"):
        return None
    inner = fields.within("state")
    return KeptState(
        mode=inner.choice("mode", _MODES),
        file=inner.path("file"),
        tag=inner.text("tag"),
        running=inner.flag("running"),
        fingerprint=Fingerprint.from_json(inner.value("fingerprint")),
        token=_token(inner),
        inode=inner.number("inode") if inner.has("inode") else 0,
        user=inner.number("user") if inner.has("user") else None,
    )


def _token(inner: Fields) -> str:
    """It becomes part of a file's name; records of before there were any have none."""
    token = inner.text("token") if inner.has("token") else ""
    if not re.fullmatch(r"([0-9a-f]{8})?", token):
        raise ValueError(f"{token!r} is no token")
    return token
