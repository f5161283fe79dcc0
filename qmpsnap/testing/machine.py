"""The guest's machine: its kernel and root, and the command line that starts it."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qmpsnap.errors import InvalidTarget, Unsupported
from qmpsnap.model.machine_description import Machine, MachineDisk, escaped
from qmpsnap.run.accelerator import accelerator
from qmpsnap.run.os_errors import unusable
from qmpsnap.testing.fetching import agent_directory, cache_directory, guest_directory
from qmpsnap.testing.initramfs import MODULES, PORT_NAME, build_initramfs, is_static_elf
from qmpsnap.testing.writer import WRITER_SCRIPT

__all__ = ["GuestDisk", "GuestImage", "accelerator", "find_guest_image", "guest_argv", "guest_machine"]

_HINT: Final = (
    "run python -m qmpsnap.testing.guest fetch, "
    "or name a directory with vmlinuz and modules/*.ko in QMPSNAP_GUEST"
)
_BUSYBOXES: Final = ("/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox")
# Self-tests of the kernel's ciphers take a quarter of a second of the boot under TCG. On a host with too few
# processors for its load, TCG delivers the timer's interrupts so late that the kernel's test of them panics.
_KERNEL_ARGUMENTS: Final = "console=ttyS0 quiet cryptomgr.notests no_timer_check"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU boots: a kernel and an initramfs."""

    kernel: Path
    initrd: Path


GuestDisk = MachineDisk
"""A disk of the guest."""


def find_guest_image(*, agent: bool = False) -> GuestImage:
    """Return the guest's kernel and initramfs, which is built when it is not there yet.

    The parts are looked for in $QMPSNAP_GUEST, else in guest/ of $QMPSNAP_CACHE (~/.cache/qmpsnap);
    the initramfs is kept in the latter, named by its content.

    Args:
        agent: Whether the guest has the QEMU guest agent, too, which answers at a port of its usual name.

    Raises:
        Unsupported: When a part is missing; the hint says how to get it.
        InvalidTarget: When a part cannot be read, or the initramfs cannot be written into the cache.
    """
    cache, parts = cache_directory() / "guest", guest_directory()
    kernel = parts / "vmlinuz"
    try:
        with kernel.open("rb"):
            pass
        found = [path for path in (parts / "modules").glob("*.ko") if path.stem in MODULES]
        modules = {path.stem: path.read_bytes() for path in found}
    except (FileNotFoundError, NotADirectoryError):
        raise Unsupported(f"no guest kernel {kernel}", feature="guest", hint=_HINT) from None
    except OSError as error:
        raise unusable(error.filename or str(kernel), error, "read") from error
    archive = build_initramfs(
        busybox=_busybox(parts),
        modules=modules,
        programs={"writer": WRITER_SCRIPT},
        agent=_agent() if agent else None,
    )
    initrd = cache / f"initrd-{hashlib.sha256(archive).hexdigest()[:16]}"
    if not initrd.exists():
        _keep(initrd, archive)
    return GuestImage(kernel, initrd)


def guest_machine(
    qemu: str | Path = "qemu-system-x86_64",
    disks: Sequence[MachineDisk] = (),
    *,
    image: GuestImage | None = None,
    memory_mib: int = 256,
    machine: str = "q35",
) -> Machine:
    """Return a machine that boots the guest.

    Args:
        qemu: The system emulator.
        disks: The guest sees those of a bus in this order.
        image: What it boots; None: see `find_guest_image`.
        memory_mib: Size of its memory in MiB.
        machine: The machine type, q35 or pc.

    Raises:
        Unsupported: When a part of the guest is missing.
    """
    image = image or find_guest_image()
    return Machine(
        qemu=qemu,
        machine=machine,
        memory_mib=memory_mib,
        disks=disks,
        kernel=image.kernel,
        initrd=image.initrd,
        append=_KERNEL_ARGUMENTS,
        ports=(PORT_NAME,),
    )


def guest_argv(
    qemu: str | Path,
    disks: Sequence[MachineDisk],
    *,
    image: GuestImage,
    port: Path,
    memory_mib: int = 256,
    console: Path | None = None,
    machine: str = "q35",
) -> list[str]:
    """Return the command line of `guest_machine`, with the guest's port as a unix socket.

    Args:
        qemu: As there, like `disks`, `image`, `memory_mib` and `machine`.
        disks: See there.
        image: See there.
        port: Path of the unix socket that QEMU makes for the guest's port; at most 107 bytes.
        memory_mib: See there.
        console: File for the kernel's messages.
        machine: See there.
    """
    described = guest_machine(qemu, disks, image=image, memory_mib=memory_mib, machine=machine)
    return replace(described, accel=accelerator()).argv(
        console="null" if console is None else f"file,path={escaped(console)}",
        ports={PORT_NAME: f"socket,path={escaped(port)},server=on,wait=off"},
    )


def _keep(file: Path, content: bytes) -> None:
    """Create a file of the cache, which has its name when it is complete."""
    unfinished = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        unfinished.rename(file)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise InvalidTarget(
            f"{str(file)!r} cannot be created: {error.strerror or error}",
            file=str(file),
            hint="QMPSNAP_CACHE names another directory for it",
        ) from error


def _agent() -> dict[str, bytes | str]:
    directory = agent_directory()
    if not (directory / ".complete").is_file():
        raise Unsupported(f"no guest agent in {directory}", feature="guest agent", hint=_HINT)
    return {
        path.name: str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in directory.iterdir()
        if path.name != ".complete"
    }


def _busybox(parts: Path) -> bytes:
    for path in (parts / "busybox", *map(Path, _BUSYBOXES)):
        try:
            program = path.read_bytes()
        except OSError:
            continue
        if is_static_elf(program):
            return program
    raise Unsupported("no statically linked busybox", feature="guest", hint=_HINT)
