"""Actions on files of ours: overlays, VM state, and what is put away. Nothing is sent to QEMU.

A file of VM state holds all that the guest had in its memory: it is made exclusively, for its owner alone,
and is called FILE.TOKEN.partial until it is whole, TOKEN being the operation's eight hex digits.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.machine import Fingerprint
from qmpsnap.plan.intent import Folded
from qmpsnap.plan.step import Step


class Proof(Struct, frozen=True):
    """What shows that a file is the layer that is meant; it is looked at once more before it is touched.

    Attributes:
        format: That of the image; "": any that has a backing file.
        backing: The layer that its header has to lead to.
        device: st_dev of the file that was looked at; 0: not known.
        inode: Its st_ino; 0: not known.
    """

    format: str
    backing: str
    device: int = 0
    inode: int = 0


def create_overlay(file: str, *, size_bytes: int, backing: str, backing_format: str, like: str) -> Step:
    """Make an overlay exclusively, with owner, group, mode and label of the layer `like` that it covers."""
    return _make(
        "create-overlay",
        file=file,
        size_bytes=size_bytes,
        backing=backing,
        backing_format=backing_format,
        like=like,
    )


def create_file(file: str, like: str) -> Step:
    """Make an empty file exclusively, so that what QEMU truncates is certainly ours."""
    return _make("create-file", file=file, like=like)


def create_memory(file: str, reserve_bytes: int = 0) -> Step:
    """Make an empty file that takes a stream of VM state; QEMU gets it open.

    Args:
        file: The file.
        reserve_bytes: Bytes of the disk that are taken for it beforehand, so that there is room for certain.
    """
    return _make("create-memory", file=file, reserve_bytes=reserve_bytes)


def create_store(file: str, like: str) -> Step:
    """Make an empty qcow2 image that takes VM state, with the owner of the layer `like`: QEMU opens it."""
    return _make("create-store", file=file, like=like)


def _make(command: str, *, file: str, **more: object) -> Step:
    arguments = Frozen({"file": file, **more})
    return Step(on="host", command=command, arguments=arguments, undo=(remove_file(file),))


def seal_memory(
    partial: str,
    file: str,
    *,
    id: str,  # noqa: A002 - a record's word
    name: str,
    running: bool,
    fingerprint: Fingerprint,
    layers: tuple[tuple[str, str], ...] = (),
) -> Step:
    """Write a note of whose state it is to the end of the file, sync it, and give it its name.

    Args:
        partial: The file as it is called until then.
        file: Its name.
        id: That of the operation.
        name: The checkpoint's name, or "".
        running: Whether the guest ran.
        fingerprint: What the machine is.
        layers: Files whose inode, size and time are noted, each with its disk's name.
    """
    detail = Frozen(id=id, name=name, running=running, fingerprint=fingerprint, layers=layers)
    return Step(on="host", command="seal-memory", arguments=Frozen(partial=partial, file=file), detail=detail)


def seal_store(partial: str, file: str) -> Step:
    """Sync a store that QEMU has closed, and give it its name; `partial` is what it is called until then."""
    return Step(on="host", command="seal-store", arguments=Frozen(partial=partial, file=file))


def remove_state(file: str, id: str, tag: str = "") -> Step:  # noqa: A002 - a record's word
    """Remove a file of VM state, if it is the one of that operation; another one that took its name stays.

    Args:
        file: The file, or what it is called until it is whole: then its name tells whose it is.
        id: That of the operation, which a stream's note names.
        tag: Name of the snapshot inside a store; "" for a stream.
    """
    arguments = Frozen(file=file, id=id, tag=tag)
    return Step(on="host", command="remove-state", arguments=arguments, final=True, writes=True, owed=True)


def retire_file(file: str, policy: Folded, to: str, proof: Proof | None = None) -> Step:
    """Rename a folded file, never onto another, or remove it; only if it is the layer that is meant.

    Args:
        file: The file.
        policy: What becomes of it.
        to: Its new name, or "".
        proof: What shows that it is that layer; None: it is not looked at.
    """
    detail: dict[str, Any] = {} if proof is None else {"proof": proof}
    return Step(
        on="host",
        command="retire-file",
        arguments=Frozen(file=file, policy=policy, to=to),
        detail=Frozen(detail),
        owed=True,
    )


def remove_file(file: str) -> Step:
    """Remove a file that this very run made, once QEMU certainly does not hold it."""
    return Step(on="host", command="remove-file", arguments=Frozen(file=file))


def remove_orphan(file: str, backing: str | None) -> Step:
    """Remove a file that an interrupted run made, if it is still as it was made: empty.

    Args:
        file: The file.
        backing: The layer that it was made over; None for a placeholder without a byte.
    """
    return Step(on="host", command="remove-orphan", arguments=Frozen(file=file, backing=backing))
