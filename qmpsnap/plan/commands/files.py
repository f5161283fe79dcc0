"""Actions on our files: overlays, VM state, and what is renamed or removed. Nothing is sent to QEMU.

A file of VM state holds all of the guest's memory: it is created exclusively, for its owner alone, and is
called FILE.TOKEN.partial until it is complete, TOKEN being the operation's eight hex digits.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, to_builtins

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.step import Step
from qmpsnap.plan.intent import Folded


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


class LuksHeader(Struct, frozen=True):
    """The image whose LUKS header an encrypted one gets; no other file that takes its name is read.

    Attributes:
        file: The image.
        device: st_dev of the file that was looked at.
        inode: Its st_ino.
    """

    file: str
    device: int
    inode: int


def create_overlay(
    file: str,
    *,
    size_bytes: int,
    backing: str,
    backing_format: str,
    like: str,
    luks: LuksHeader | None = None,
) -> Step:
    """Create an overlay exclusively, with owner, group, mode and label of the layer `like` that it covers.

    Args:
        file: The overlay.
        size_bytes: What the guest sees.
        backing: What its header records as backing file.
        backing_format: The format of that.
        like: The layer that it covers.
        luks: The LUKS header that it gets; None: it is not encrypted.
    """
    return _make(
        "create-overlay",
        file=file,
        size_bytes=size_bytes,
        backing=backing,
        backing_format=backing_format,
        like=like,
        luks=luks,
    )


def create_file(file: str, like: str) -> Step:
    """Create an empty file exclusively, so that what QEMU truncates is certainly ours."""
    return _make("create-file", file=file, like=like)


def create_image(
    file: str,
    like: str,
    *,
    size_bytes: int,
    format: str,  # noqa: A002 - QEMU's word
    luks: LuksHeader | None = None,
) -> Step:
    """Create an image without data exclusively, as `create_overlay`, but with no backing file."""
    return _make("create-image", file=file, like=like, size_bytes=size_bytes, format=format, luks=luks)


def create_memory(file: str) -> Step:
    """Create an empty file for a stream of VM state; QEMU gets it open."""
    return _make("create-memory", file=file)


def reserve_memory(file: str, *, at_most_bytes: int, process: str) -> Step:
    """Reserve disk space for a stream of the memory as it is at that time, in addition to what is reserved.

    Args:
        file: The file, which `create_memory` has made.
        at_most_bytes: The length that no stream of the machine exceeds.
        process: The QEMU process whose memory in use tells how much is enough; "": reserve all.
    """
    arguments = Frozen(file=file, at_most_bytes=at_most_bytes, process=process)
    return Step(on="host", command="reserve-memory", arguments=arguments)


def create_store(file: str, like: str) -> Step:
    """Create an empty qcow2 image for VM state, with the owner of the layer `like`: QEMU opens it."""
    return _make("create-store", file=file, like=like)


def _make(command: str, *, file: str, luks: LuksHeader | None = None, **more: object) -> Step:
    encrypted = {} if luks is None else {"luks_of": luks.file}
    return Step(
        on="host",
        command=command,
        arguments=Frozen({"file": file, **more, **encrypted}),
        detail=Frozen() if luks is None else Frozen(luks=luks),
        undo=(remove_file(file),),
    )


def seal_memory(
    partial: str,
    file: str,
    *,
    id: str,  # noqa: A002 - a record's word
    name: str,
    running: bool,
    fingerprint: Fingerprint,
    layers: tuple[tuple[str, str], ...] = (),
    trims: bool = True,
) -> Step:
    """Append a note that says whose state it is, sync the file, and give it its name.

    Args:
        partial: The file's name until then.
        file: Its name.
        id: The operation's id.
        name: The checkpoint's name, or "".
        running: Whether the guest was running.
        fingerprint: What the machine is.
        layers: Each disk's name and a file, whose inode, size and time are noted.
        trims: Whether disk space that is reserved beyond the end is given back, which takes time.
    """
    machine = to_builtins(fingerprint)
    detail = Frozen(id=id, name=name, running=running, fingerprint=machine, layers=layers, trims=trims)
    return Step(on="host", command="seal-memory", arguments=Frozen(partial=partial, file=file), detail=detail)


def seal_store(partial: str, file: str) -> Step:
    """Sync a store that QEMU has closed, called `partial` until then, and give it its name."""
    return Step(on="host", command="seal-store", arguments=Frozen(partial=partial, file=file))


def remove_state(file: str, id: str, tag: str = "") -> Step:  # noqa: A002 - a record's word
    """Remove a file of VM state, if it is that of the operation; another one that took its name stays.

    Args:
        file: The file, or its name until it is complete, which tells whose it is.
        id: The operation's id, which a stream's note names.
        tag: Name of the snapshot inside a store; "" for a stream.
    """
    arguments = Frozen(file=file, id=id, tag=tag)
    return Step(on="host", command="remove-state", arguments=arguments, final=True, writes=True, owed=True)


def retire_file(
    file: str, policy: Folded, to: str, proof: Proof | None = None, *, alone: bool = False
) -> Step:
    """Rename a folded file, never onto another, or remove it; without proof it is not looked at first.

    Args:
        file: The file.
        policy: What becomes of it.
        to: Its new name, or "".
        proof: What shows that it is the layer that is meant.
        alone: Whether it stays if an image in its directory is based on it at that time.
    """
    detail: dict[str, Any] = {} if proof is None else {"proof": to_builtins(proof)}
    if alone:
        detail["alone"] = True
    return Step(
        on="host",
        command="retire-file",
        arguments=Frozen(file=file, policy=policy, to=to),
        detail=Frozen(detail),
        owed=True,
    )


def remove_file(file: str) -> Step:
    """Remove a file that this very run created, once QEMU certainly does not have it open."""
    return Step(on="host", command="remove-file", arguments=Frozen(file=file))


def remove_scratch(places: tuple[str, ...]) -> Step:
    """Remove private directories that killed processes of ours have left.

    Args:
        places: Directories in which they are; "": that for temporary files.
    """
    return Step(on="host", command="remove-scratch", arguments=Frozen(places=places))


def remove_orphan(file: str, backing: str | None) -> Step:
    """Remove a file that an interrupted run created, if it is still empty.

    Args:
        file: The file.
        backing: The layer that it was created over; None for a placeholder without a byte.
    """
    return Step(on="host", command="remove-orphan", arguments=Frozen(file=file, backing=backing))
