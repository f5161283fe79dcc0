"""An encrypted disk: what of it would lie in a file in the clear is refused, unless the caller allows it.

QEMU's blockdev-snapshot-sync and drive-mirror take no secret, so the images that they open are not
encrypted, and no query tells which secret a node was opened with. VM state holds the keys, and what the
guest has read (docs/explanation/qemu.md).
"""

from __future__ import annotations

from collections.abc import Iterable

from qmpsnap.errors import Unsupported
from qmpsnap.model.graph import Disk, Graph, Layer

CLEAR = "an encrypted disk's data in the clear"
"""Feature of the refusals that `plain` lifts."""

_HINT = "allow it with --plain; snapshots inside the image (--internal) stay encrypted"


def refuse_clear_overlay(disk: Disk, *, plain: bool) -> None:
    """Refuse an overlay on an encrypted active layer: what the guest writes from then on is not encrypted.

    Args:
        disk: The disk.
        plain: Whether the caller allows it.

    Raises:
        Unsupported: When the guest's writes are encrypted now.
    """
    if disk.layers and disk.active.encrypted and not plain:
        raise Unsupported(
            f"{disk.name} is encrypted ({disk.active.file}), but its overlay would not be: it "
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
                hint="allow it with --plain",
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
            hint="allow it with --plain",
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
            hint="use --mode stop or background, with --plain if the memory may be stored unencrypted in a "
            "file",
        )
    refuse_clear_memory(graph, plain=plain, where="an image")


def refuse_second_opening(disk: Disk, files: Iterable[str]) -> None:
    """Refuse to open an encrypted layer once more: its secret is not known here.

    Args:
        disk: The disk.
        files: What would be opened.

    Raises:
        Unsupported: Naming the layer.
    """
    wanted = set(files)
    for layer in disk.layers:
        if layer.encrypted and layer.file in wanted:
            raise Unsupported(
                f"{layer.file} is encrypted, and QEMU does not reveal the secret that is needed to open it",
                feature="revert in place on an encrypted disk",
                hint="revert into a new QEMU, which you give the secret: --prepare; or use snapshots "
                "inside the image (--internal)",
            )
