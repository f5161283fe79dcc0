"""The guest's root: an initramfs of busybox, a few modules, and the two scripts that run in it.

Pure: bytes in, bytes out. No compiler, no image tool, no root is needed.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

from qmpsnap.testing.shell_scripts import KILL_ALL

__all__ = ["LOADER", "MODULES", "PORT_NAME", "SEEDER", "STARTED", "build_initramfs", "is_static_elf"]

PORT_NAME: Final = "qmpsnap.guest"
STARTED: Final = "agent started"
LOADER: Final = "ld-linux-x86-64.so.2"
SEEDER: Final = "/bin/seeder"
"""An empty file that may be run; `Guest.reseed` writes its program there."""

# In insmod order. Those from scsi_common on are loaded only when the machine has such a controller or card.
MODULES: Final = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "scsi_common",
    "scsi_mod",
    "sd_mod",
    "virtio_scsi",
    "libata",
    "ata_piix",
    "failover",
    "net_failover",
    "virtio_net",
)

# The line that it prints first, on the console, tells whoever measures a boot that the kernel is done.
# The first mount needs the full path: busybox finds its own applets through /proc.
_INIT: Final = r"""#!/bin/sh
echo init runs
export PATH=/bin
/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
load() { for module in "$@"; do [ ! -e /lib/$module.ko ] || insmod /lib/$module.ko; done; }
load virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console
for device in /sys/bus/pci/devices/*; do
    read -r kind < $device/modalias
    case $kind in
        pci:v00001AF4d00001004*|pci:v00001AF4d00001048*) load scsi_common scsi_mod sd_mod virtio_scsi ;;
        *bc01sc01*) load scsi_common scsi_mod sd_mod libata ata_piix ;;
        pci:v00001AF4d00001000*|pci:v00001AF4d00001041*) load failover net_failover virtio_net ;;
    esac
done 2> /dev/null
[ ! -e /agent/qemu-ga ] || setsid sh /bin/qemu-agent > /dev/null 2>&1 < /dev/null &
while :; do setsid sh /bin/agent; usleep 100000; done
"""

# At its start it says "agent started": whoever waits for an answer then knows that it will not come.
# One request: EOT, then "ID LIMIT MOST LENGTH SCRIPT" EOT. One answer: "ID begin", base64 lines, "ID STATUS".
# At most MOST bytes of output are sent, from a new file, because what an earlier script has left running may
# still write to its own; a file is emptied at once, and removed after some runs. LIMIT 0 is for short scripts
# of ours, a quarter of the price: no limit, and they print one line. A request that lost its end (the host
# went away) has the wrong length and is dropped. While no host is there a read returns at once and a write
# waits; the kernel has no event for the shell: hence the pause. It starts no process: under TCG that keeps a
# third of a host's processor busy. Where busybox's `read` takes only whole seconds, the subshell ends with
# status 2.
_AGENT: Final = (
    r"""
eot=$(printf '\004')
for port in /sys/class/virtio-ports/*; do
    read -r name < $port/name
    [ "$name" != PORT_NAME ] || break
done
[ "$name" = PORT_NAME ] || exit
exec 3<> /dev/${port##*/}
echo 'STARTED' >&3
[ -p /tmp/.never ] || mkfifo /tmp/.never
exec 4<> /tmp/.never
pause() { read -r -t 0.01 -u 4 nothing; }
(pause) 2> /dev/null
[ $? != 2 ] || pause() { usleep 10000; }
runs=0
KILL_ALLwhile :; do
    IFS=' ' read -r -d "$eot" id limit most length script <&3 || { pause; continue; }
    [ "${#script}" = "$length" ] || continue
    if [ "$limit" = 0 ]; then
        answer=$(eval "$script" 2>&1)
        echo "$id $? $answer" >&3
        continue
    fi
    [ $((runs % 64)) != 0 ] || rm -f /tmp/.answer.*
    output=/tmp/.answer.$((runs += 1))
    echo "$id begin" >&3
    QMPSNAP_RUN=$id timeout -s KILL "$limit" sh -c "$script" > $output 2>&1 < /dev/null 3>&- 4>&-
    status=$?
    [ $status != 137 ] || kill_all "$id"
    { head -c "$most" $output | base64; echo "$id $status"; } >&3
    : > $output
done
""".replace("PORT_NAME", PORT_NAME)
    .replace("KILL_ALL", KILL_ALL)
    .replace("STARTED", STARTED)
)

# The agent of QEMU, if its files are there; its libraries are in the same directory.
_QEMU_AGENT: Final = r"""
for port in /sys/class/virtio-ports/*; do
    read -r name < $port/name
    [ "$name" != org.qemu.guest_agent.0 ] || break
done
[ "$name" = org.qemu.guest_agent.0 ] || exit
while :; do
    LD_LIBRARY_PATH=/agent /agent/LOADER /agent/qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run
    usleep 100000
done
""".replace("LOADER", LOADER)

_DIRECTORIES: Final = ("bin", "dev", "lib", "mnt", "proc", "run", "sys", "tmp")


def build_initramfs(
    *,
    busybox: bytes,
    modules: Mapping[str, bytes],
    programs: Mapping[str, str] | None = None,
    agent: Mapping[str, bytes | str] | None = None,
) -> bytes:
    """Return an initramfs (newc cpio, not compressed) that boots to the agent.

    The same arguments give the same bytes.

    Args:
        busybox: A statically linked busybox with its own shell.
        modules: Kernel modules by name, as in `MODULES`; those that are built in may be left out.
        programs: More shell scripts for /bin, by name.
        agent: The QEMU guest agent, the loader and its libraries, by name; text is what a symbolic link leads
            to. None: the guest has none.
    Returns:
        The archive.
    """
    archive = _Cpio()
    for name in _DIRECTORIES:
        archive.add(name, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox)
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"busybox")
    for name, script in {"agent": _AGENT, **(programs or {})}.items():
        archive.add(f"bin/{name}", stat.S_IFREG | 0o755, script.encode())
    for name in MODULES:
        if name in modules:
            archive.add(f"lib/{name}.ko", stat.S_IFREG | 0o644, modules[name])
    if agent:
        archive.add("agent", stat.S_IFDIR | 0o755)
        archive.add("bin/qemu-agent", stat.S_IFREG | 0o755, _QEMU_AGENT.encode())
    for name, content in sorted((agent or {}).items()):
        if isinstance(content, str):
            archive.add(f"agent/{name}", stat.S_IFLNK | 0o777, content.encode())
        else:
            archive.add(f"agent/{name}", stat.S_IFREG | 0o755, content)
    archive.add(SEEDER[1:], stat.S_IFREG | 0o700)
    archive.add("init", stat.S_IFREG | 0o755, _INIT.encode())
    return archive.finish()


def is_static_elf(program: bytes) -> bool:
    """Say whether a 64-bit ELF program needs no loader (it has no PT_INTERP header)."""
    if program[:5] != b"\x7fELF\x02":
        return False
    table = int.from_bytes(program[32:40], "little")
    size, count = (int.from_bytes(program[at : at + 2], "little") for at in (54, 56))
    kinds = (program[table + size * index :][:4] for index in range(count))
    return all(int.from_bytes(kind, "little") != 3 for kind in kinds)


class _Cpio:
    """Writer of the "newc" archives that the kernel unpacks (Documentation: initramfs buffer format)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def add(self, name: str, mode: int, data: bytes = b"", *, device: tuple[int, int] = (0, 0)) -> None:
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (len(self._parts) + 1, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts.append(_padded(header + path) + _padded(data))

    def finish(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
