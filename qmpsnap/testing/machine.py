"""The guest's machine: its kernel and root, and the command line that starts it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, assert_never

from qmpsnap.errors import Unsupported
from qmpsnap.testing.fetching import cache_directory, guest_directory
from qmpsnap.testing.initramfs import MODULES, PORT_NAME, build_initramfs, is_static_elf
from qmpsnap.testing.writer import WRITER_SCRIPT

__all__ = ["GuestDisk", "GuestImage", "accelerator", "find_guest_image", "guest_argv"]

_HINT: Final = (
    "run python -m qmpsnap.testing.guest fetch, "
    "or name a directory with vmlinuz and modules/*.ko in QMPSNAP_GUEST"
)
_BUSYBOXES: Final = ("/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox")
# Self-tests of the kernel's ciphers take a quarter of a second of the boot under TCG.
_KERNEL_ARGUMENTS: Final = "console=ttyS0 quiet cryptomgr.notests"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What QEMU boots: a kernel and an initramfs."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDisk:
    """A disk of the guest.

    Attributes:
        name: qdev id and serial of the disk; nodes are called NAME-format and NAME-file.
        file: The active layer.
        bus: ide is a PATA disk on a PIIX3: the cloud kernel has no AHCI driver.
        legacy: By `-drive`, with the drive id drive-NAME and without node names, instead of `-blockdev`.
        device: More properties of the device, as in "werror=stop".
    """

    name: str
    file: Path
    format: str = "qcow2"
    bus: Literal["virtio", "scsi", "ide"] = "virtio"
    legacy: bool = False
    device: str = ""


def accelerator() -> Literal["kvm", "tcg"]:
    """Return the accelerator that works here; QMPSNAP_ACCEL forces either.

    /dev/kvm can exist and open where a guest then hangs before its first line (seen on hosts
    without these CPU flags), so the flags are asked, too.
    """
    forced = os.environ.get("QMPSNAP_ACCEL", "")
    match forced:
        case "kvm" | "tcg":
            return forced
        case "":
            pass
        case _:
            raise Unsupported(f"QMPSNAP_ACCEL is {forced!r}, not kvm or tcg", feature=forced)
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return "tcg"
    return "kvm" if flags & {"vmx", "svm"} else "tcg"


def find_guest_image() -> GuestImage:
    """Return the guest's kernel and initramfs, which is built when it is not there yet.

    The parts are looked for in $QMPSNAP_GUEST, else in guest/ of $QMPSNAP_CACHE (~/.cache/qmpsnap);
    the initramfs is kept in the latter, named by its content.

    Raises:
        Unsupported: When a part is missing; the hint says how to get it.
    """
    cache, parts = cache_directory() / "guest", guest_directory()
    kernel = parts / "vmlinuz"
    if not kernel.is_file():
        raise Unsupported(f"no guest kernel {kernel}", feature="guest", hint=_HINT)
    modules = {path.stem: path.read_bytes() for path in parts.glob("modules/*.ko") if path.stem in MODULES}
    archive = build_initramfs(busybox=_busybox(parts), modules=modules, programs={"writer": WRITER_SCRIPT})
    initrd = cache / f"initrd-{hashlib.sha256(archive).hexdigest()[:16]}"
    if not initrd.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, prefix="initrd-", delete=False) as file:
            file.write(archive)
        Path(file.name).rename(initrd)
    return GuestImage(kernel, initrd)


def guest_argv(
    qemu: str | Path,
    disks: Sequence[GuestDisk],
    *,
    image: GuestImage,
    port: Path,
    memory_mib: int = 256,
    console: Path | None = None,
    machine: str = "q35",
) -> list[str]:
    """Return the command line of a machine that boots the guest, to be started by `qmpsnap.launch`.

    Args:
        qemu: The system emulator.
        disks: The guest sees those of a bus in this order.
        image: See `find_guest_image`.
        port: Path of the unix socket that QEMU makes for the guest's port; at most 107 bytes.
        memory_mib: Size of its memory in MiB.
        console: File for the kernel's messages.
        machine: The machine type, q35 or pc.
    """
    argv = [str(qemu), "-machine", machine, "-accel", accelerator(), "-m", str(memory_mib)]
    argv += ["-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", _KERNEL_ARGUMENTS]
    argv += ["-serial", "null" if console is None else f"file:{console}"]
    argv += ["-device", "virtio-serial-pci", "-chardev"]
    argv += [f"socket,id=guest-port,path={_escaped(port)},server=on,wait=off"]
    argv += ["-device", f"virtserialport,chardev=guest-port,id=guest-port,name={PORT_NAME}"]
    buses = {disk.bus for disk in disks}
    if "scsi" in buses:
        argv += ["-device", "virtio-scsi-pci,id=scsi"]
    if "ide" in buses and machine != "pc":
        argv += ["-device", "piix3-ide,id=pata"]
    places = [
        f"{'ide' if machine == 'pc' else 'pata'}.{bus},unit={unit}" for bus in (0, 1) for unit in (0, 1)
    ]
    for disk in disks:
        argv += _disk_arguments(disk, places.pop(0) if disk.bus == "ide" else "")
    return argv


def _disk_arguments(disk: GuestDisk, ide_place: str) -> list[str]:
    match disk.bus:
        case "virtio":
            driver = "virtio-blk-pci"
        case "scsi":
            driver = "scsi-hd,bus=scsi.0"
        case "ide":
            driver = f"ide-hd,bus={ide_place}"
        case _:
            assert_never(disk.bus)
    device = f"{driver},id={disk.name},serial={disk.name}"
    device += f",{disk.device}" if disk.device else ""
    if disk.legacy:
        drive = f"if=none,id=drive-{disk.name},file={_escaped(disk.file)},format={disk.format}"
        return ["-drive", drive, "-device", f"{device},drive=drive-{disk.name}"]
    nodes = {
        "driver": disk.format,
        "node-name": f"{disk.name}-format",
        "file": {"driver": "file", "filename": str(disk.file), "node-name": f"{disk.name}-file"},
    }
    return ["-blockdev", json.dumps(nodes), "-device", f"{device},drive={disk.name}-format"]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _busybox(parts: Path) -> bytes:
    for path in (parts / "busybox", *map(Path, _BUSYBOXES)):
        try:
            program = path.read_bytes()
        except OSError:
            continue
        if is_static_elf(program):
            return program
    raise Unsupported("no statically linked busybox", feature="guest", hint=_HINT)
