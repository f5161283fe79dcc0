"""An encrypted disk: what is made of it is encrypted alike, or refused unless the caller allows it plain.

A new image gets the LUKS header of a layer, so that the layer's key encrypts it and every secret that opens
the layer opens it. QEMU opens it with the secret object that it names for the layer. VM state, which holds
the keys and what the guest has read, and a raw copy cannot be encrypted (docs/decisions/luks-header.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from qmpsnap.errors import Unsupported
from qmpsnap.model.files import Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Disk, Graph, Layer
from qmpsnap.model.hints import quoted
from qmpsnap.model.option_hints import Hint, Named
from qmpsnap.model.step import Overlay, Root
from qmpsnap.plan.commands.block import luks_options
from qmpsnap.plan.commands.files import LuksHeader

CLEAR = "an encrypted disk's data in the clear"
"""Feature of the refusals that `plain` lifts."""

_HINT = Hint("allow it with ", Named("plain"), "; snapshots inside the image (--internal) stay encrypted")


def secret_for(layers: Iterable[Layer], files: Files) -> tuple[str, LuksHeader | None]:
    """What a new image needs to be encrypted as one of the layers is.

    Returns:
        The id of the secret object that opens the layer, and its LUKS header. Neither where no layer is
        encrypted, QEMU does not name the secret, or we do not see the header, or see one that QEMU's user
        could not have written: who asks for it might want to guess another machine's passphrase.
    """
    for layer in layers:
        fact = files.files.get(layer.file)
        known = layer.encrypted and layer.secret and not layer.window and layer.file not in files.barred
        if known and fact is not None and fact.luks:
            return layer.secret, LuksHeader(layer.file, fact.device, fact.inode)
    return "", None


def encryption_notes(images: Iterable[Overlay | Root]) -> tuple[str, ...]:
    """What whoever starts the machine again has to know of those images that are encrypted."""
    secrets = {image.file: image.secret for image in images if image.secret}
    return tuple(
        f"{file} is encrypted as the disk was: QEMU opens it, like every encrypted layer below, with the "
        f"secret {secret!r}"
        for file, secret in secrets.items()
    )


def opened_again(root: Root, below: Sequence[Layer], files: Files) -> Mapping[str, object]:
    """The options with which another QEMU opens a new root, down to the last encrypted layer.

    What lies below that is opened as the header of the layer says.

    Args:
        root: The root, a qcow2 image.
        below: The layers that it is backed by, from the top.
        files: What is known of their files.

    Returns:
        The options as `-blockdev` takes them in JSON, without a node name; empty if no layer is encrypted.
    """
    layers = [(root.file, "qcow2", root.secret), *((each.file, _opens(each), each.secret) for each in below)]
    node: dict[str, object] = {}
    for file, driver, secret in reversed(layers):
        if not secret and not node:
            continue
        backing = {"backing": node} if node else {}
        key = {"key-secret": secret} if driver == "luks" else {"encrypt": luks_options(secret)}
        fact = files.files.get(file)
        is_device = fact is not None and fact.kind == "block"
        image = {"driver": "host_device" if is_device else "file", "filename": file}
        node = {"driver": driver, **(key if secret else {}), "file": image, **backing}
    return Frozen(node)


def _opens(layer: Layer) -> str:
    """The driver that opens a layer: raw on a node of LUKS, which alone encrypts it, reads what that reads.

    No `backing` is opened whose file has a file of its own: "Can't specify 'file' and 'filename' options at
    the same time", 7.2 to 11.1.
    """
    return "luks" if layer.encrypted and layer.format == "raw" else layer.format


def opening_notes(nodes: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    """What whoever starts another QEMU by hand has to know, of those disks that have an encrypted layer."""
    return tuple(
        f"{disk} has an encrypted layer: it is opened by "
        f"-blockdev {quoted(json.dumps({'node-name': disk, **node}))}"
        for disk, node in nodes.items()
    )


def refuse_clear_overlay(disk: Disk, layer: Layer, *, plain: bool) -> None:
    """Refuse an overlay on an encrypted layer that cannot be encrypted itself.

    Args:
        disk: The disk.
        layer: Its layer that is covered.
        plain: Whether the caller allows it.

    Raises:
        Unsupported: When the layer is encrypted.
    """
    if layer.encrypted and not plain:
        raise Unsupported(
            f"{disk.name} is encrypted ({layer.file}), but its overlay would not be: it "
            "would hold what the guest writes unencrypted",
            feature=CLEAR,
            hint=_HINT,
        )


def refuse_clear_data(read: Iterable[Layer], written: str, *, plain: bool, encrypted: bool = False) -> None:
    """Refuse to copy what is encrypted into a file that is not.

    Args:
        read: The layers that are copied.
        written: The file that receives the data.
        plain: Whether the caller allows it.
        encrypted: Whether that file's data are encrypted.

    Raises:
        Unsupported: Naming the first layer that is encrypted.
    """
    for layer in read:
        if layer.encrypted and not encrypted and not plain:
            raise Unsupported(
                f"{layer.file} is encrypted, but {written} is not: its data would be stored there "
                "unencrypted",
                feature=CLEAR,
                hint=Hint("allow it with ", Named("plain")),
            )


def refuse_clear_memory(graph: Graph, *, plain: bool, where: str = "a file") -> None:
    """Refuse to keep the memory of a machine with an encrypted disk in the clear.

    Args:
        graph: The machine's disks.
        plain: Whether the caller allows it.
        where: What the memory goes into.

    Raises:
        Unsupported: Naming the first encrypted disk.
    """
    secret = [disk for disk in graph.disks.values() if any(layer.encrypted for layer in disk.layers)]
    if secret and not plain:
        raise Unsupported(
            f"{secret[0].name} is encrypted, and the memory, which holds its key, would be stored "
            f"unencrypted in {where}",
            feature=CLEAR,
            hint=Hint("allow it with ", Named("plain")),
        )


def refuse_memory_inside(graph: Graph, holder: Disk, *, plain: bool) -> None:
    """Refuse VM state in an encrypted image, which ends QEMU, and in a plain one beside an encrypted disk.

    Args:
        graph: The machine's disks.
        holder: The disk whose image would take the VM state.
        plain: Whether the caller allows it in the clear.

    Raises:
        Unsupported: In either case.
    """
    if holder.active.encrypted:  # an assertion in qcow2_co_encdec (block/qcow2-threads.c), 7.2 to 11.1
        raise Unsupported(
            f"{holder.name} is encrypted ({holder.active.file}), and QEMU aborts (failed assertion) when it "
            "writes VM state into an encrypted image",
            feature="VM state in an encrypted image",
            hint=Hint(
                "use --mode stop or background, with ",
                Named("plain"),
                " if the memory may be stored unencrypted in a file",
            ),
        )
    refuse_clear_memory(graph, plain=plain, where="an image")


def refuse_second_opening(disk: Disk, *, aside: bool) -> None:
    """Refuse to open a chain once more by the names in its headers when a layer is encrypted.

    Args:
        disk: The disk.
        aside: Whether it is a chain that the disk does not read now.

    Raises:
        Unsupported: Naming the layer.
    """
    for layer in disk.layers:
        if layer.encrypted:
            new = "" if aside else "revert into a new QEMU, which you give the secret: --prepare; or "
            raise Unsupported(
                f"{layer.file} is encrypted, and encrypted layers are not opened a second time",
                feature="revert in place on an encrypted disk",
                hint=f"{new}use snapshots inside the image (--internal)",
            )
