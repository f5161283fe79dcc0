"""The description of a machine, and its QEMU command line, which only this file writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, assert_never

from qmpsnap.model.arguments import AtLeastOne, Text, Word, check, path_text, refuse, texts
from qmpsnap.model.command_line.rewrite import for_start
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.start import Start


class PathLike(Protocol):
    """A path that is an object, as those of pathlib."""

    def __fspath__(self) -> str:
        """Return the path as text."""


PathText = str | PathLike
"""A path."""

Accelerator = Literal["kvm", "tcg"]
"""What runs the guest's code: the processor, or QEMU's translator."""

Bus = Literal["virtio", "scsi", "ide"]
"""How a disk is attached."""

# A node is called NAME-format, and a node's name has at most 31 bytes.
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,23}")
_MAC: Final = re.compile(r"[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}")
_OURS: Final = re.compile(r"scsi|pata|(port|nic)\d+")  # ids of the other devices
_IDE_DISKS: Final = 4
_PORTS: Final = 30  # a virtio-serial device has 31, the first of which is a console's


@dataclass(frozen=True, slots=True)
class MachineDisk:
    """A disk of a machine.

    Attributes:
        name: qdev id and serial of the disk; nodes are called NAME-format and NAME-file.
        file: The active layer.
        format: Its format, as in "raw".
        bus: ide is a PATA disk on a PIIX3, which guests without an AHCI driver see, too.
        legacy: By `-drive`, with the drive id drive-NAME and without node names, instead of `-blockdev`.
        device: More properties of the device, as in "werror=stop"; "": none.
    """

    name: str
    file: PathText
    format: str = "qcow2"
    bus: Bus = "virtio"
    legacy: bool = False
    device: str = ""

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        path_text("file", self.file)
        check("format", self.format, Text)
        check("bus", self.bus, Bus)
        check("legacy", self.legacy, bool)
        check("device", self.device, Word)


@dataclass(frozen=True, slots=True)
class Nic:
    """A network card of a machine.

    Attributes:
        netdev: Its backend, as `-netdev` takes it, without an id: "user",
            "socket,mcast=230.0.0.1:4000,localaddr=127.0.0.1".
        mac: Its address; "": QEMU's choice, the same in every QEMU.
        device: The card's device model.
    """

    netdev: str = "user"
    mac: str = ""
    device: str = "virtio-net-pci"

    def __post_init__(self) -> None:
        check("netdev", self.netdev, Text)
        check("mac", self.mac, Word)
        check("device", self.device, Text)
        if self.mac and not _MAC.fullmatch(self.mac):
            refuse(
                "mac", self.mac, "give six pairs of hexadecimal digits, the first one even: 52:54:00:12:34:56"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine for `launch`, for those who have no command line of their own.

    It has no devices but those named here. Its monitor, console and ports are no part of it, because each
    QEMU has its own: `launch` makes them.

    Attributes:
        qemu: The system emulator: a path, or a name on PATH.
        machine: The machine type, as in "q35" or "pc".
        accel: What runs the guest's code. None: `launch` takes kvm where it works, else tcg.
        memory_mib: Size of its memory in MiB.
        cpus: Number of its processors.
        disks: Its disks; the guest sees those on the same bus in this order.
        kernel: What it boots, if not a disk; "": none.
        initrd: The kernel's initramfs; "": none.
        append: The kernel's command line.
        console: Whether it has a serial port, which `LaunchedVM.console` reads.
        ports: Names of its virtio-serial ports, as in "org.qemu.guest_agent.0"; see `LaunchedVM.port`.
        nics: Its network cards.
        rng: Whether it has a device that gives the guest random numbers.
        arguments: More arguments of QEMU, as in ("-snapshot",).
    """

    qemu: PathText = "qemu-system-x86_64"
    machine: str = "q35"
    accel: Accelerator | None = None
    memory_mib: int = 256
    cpus: int = 1
    disks: Sequence[MachineDisk] = ()
    kernel: PathText = ""
    initrd: PathText = ""
    append: str = ""
    console: bool = True
    ports: Sequence[str] = ()
    nics: Sequence[Nic] = ()
    rng: bool = False
    arguments: Sequence[PathText] = ()

    def __post_init__(self) -> None:
        values: dict[str, object] = {
            "qemu": path_text("qemu", self.qemu),
            "disks": _each("disks", self.disks, MachineDisk),
            "ports": texts("ports", self.ports),
            "nics": _each("nics", self.nics, Nic),
            "arguments": words("arguments", self.arguments),
        }
        for name in ("kernel", "initrd"):
            path = getattr(self, name)
            values[name] = path_text(name, path) if path != "" else ""
        for name, value in values.items():
            object.__setattr__(self, name, value)
        check("machine", self.machine, Text)
        check("accel", self.accel, Accelerator | None)
        check("memory_mib", self.memory_mib, AtLeastOne)
        check("cpus", self.cpus, AtLeastOne)
        check("append", self.append, Word)
        check("console", self.console, bool)
        check("rng", self.rng, bool)
        _check_distinct("disks", [disk.name for disk in self.disks])
        _check_distinct("ports", self.ports)
        for disk in self.disks:
            if _OURS.fullmatch(disk.name):
                refuse("disks", disk.name, "another device of the machine has that id")
        if len(self.ports) > _PORTS:
            refuse("ports", self.ports, f"give at most {_PORTS}")
        if sum(disk.bus == "ide" for disk in self.disks) > _IDE_DISKS:
            refuse("disks", self.disks, f"give at most {_IDE_DISKS} with the bus 'ide'")
        if (self.initrd or self.append) and not self.kernel:
            refuse("kernel", self.kernel, "an initramfs and a command line need a kernel")

    def argv(
        self, start: Start | None = None, *, console: str = "null", ports: Mapping[str, str] | None = None
    ) -> list[str]:
        """Return the QEMU command line of this machine, without a monitor.

        Args:
            start: How this QEMU differs from another one of the machine; None: it does not.
            console: Backend of the serial port, as `-chardev` takes it, without an id.
            ports: Backend of each port, by its name; "null" for those not given.

        Raises:
            Unsupported: When the start names an unknown disk, or only one QEMU can have an argument.
        """
        argv = [*self._board(), *self._disk_arguments(), *self._network(), *map(str, self.arguments)]
        channels = self._channels(console, ports or Frozen())
        return [*(argv if start is None else for_start(argv, start)), *channels]

    def _board(self) -> list[str]:
        argv = [str(self.qemu), "-machine", self.machine, "-accel", self.accel or "tcg"]
        argv += ["-m", str(self.memory_mib)]
        argv += ["-smp", str(self.cpus)] if self.cpus > 1 else []
        argv += ["-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-kernel", str(self.kernel)] if self.kernel else []
        argv += ["-initrd", str(self.initrd)] if self.initrd else []
        argv += ["-append", self.append] if self.append else []
        argv += ["-device", "virtio-rng-pci"] if self.rng else []
        return argv

    def _channels(self, console: str, ports: Mapping[str, str]) -> list[str]:
        argv: list[str] = []
        if self.console:
            argv += ["-chardev", _chardev(console, "console"), "-serial", "chardev:console"]
        if self.ports:
            argv += ["-device", "virtio-serial-pci"]
        for number, name in enumerate(self.ports):
            argv += ["-chardev", _chardev(ports.get(name, "null"), f"port{number}")]
            argv += ["-device", f"virtserialport,chardev=port{number},id=port{number},name={escaped(name)}"]
        return argv

    def _disk_arguments(self) -> list[str]:
        argv: list[str] = []
        buses = {disk.bus for disk in self.disks}
        on_board = self.machine.startswith("pc") and "q35" not in self.machine
        if "scsi" in buses:
            argv += ["-device", "virtio-scsi-pci,id=scsi"]
        if "ide" in buses and not on_board:
            argv += ["-device", "piix3-ide,id=pata"]
        bus = "ide" if on_board else "pata"
        places = [f"{bus}.{channel},unit={unit}" for channel in (0, 1) for unit in (0, 1)]
        for disk in self.disks:
            argv += _disk(disk, places.pop(0) if disk.bus == "ide" else "")
        return argv

    def _network(self) -> list[str]:
        argv: list[str] = []
        for number, nic in enumerate(self.nics):
            kind, comma, rest = nic.netdev.partition(",")
            mac = f",mac={nic.mac}" if nic.mac else ""
            argv += ["-netdev", f"{kind},id=net{number}{comma}{rest}"]
            argv += ["-device", f"{nic.device},netdev=net{number},id=nic{number}{mac}"]
        return argv


def escaped(value: object) -> str:
    """A value as QEMU takes it in `key=value,...`: with its commas doubled."""
    return str(value).replace(",", ",,")


def words(parameter: str, given: Iterable[PathText]) -> tuple[str, ...]:
    """Return the words of a command line; paths become text.

    Raises:
        BadArgument: When it is not a sequence of words.
    """
    if isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        refuse(parameter, given, "give separate words", hint=f"{parameter}=shlex.split(...)")
    argv = tuple(word if isinstance(word, str) else path_text(parameter, word) for word in given)
    for word in argv:
        check(parameter, word, Word)
    return argv


def _disk(disk: MachineDisk, ide_place: str) -> list[str]:
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
    # "nbd:disk" would be a protocol.
    file = f"{disk.file}" if f"{disk.file}".startswith("/") else f"./{disk.file}"
    if disk.legacy:
        drive = f"if=none,id=drive-{disk.name},file={escaped(file)},format={disk.format}"
        return ["-drive", drive, "-device", f"{device},drive=drive-{disk.name}"]
    nodes = {
        "driver": disk.format,
        "node-name": f"{disk.name}-format",
        "file": {"driver": "file", "filename": file, "node-name": f"{disk.name}-file"},
    }
    return ["-blockdev", json.dumps(nodes), "-device", f"{device},drive={disk.name}-format"]


def _chardev(backend: str, name: str) -> str:
    kind, comma, rest = backend.partition(",")
    return f"{kind},id={name}{comma}{rest}"


def _each(parameter: str, given: object, kind: type) -> tuple[object, ...]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        refuse(parameter, given, f"give a list of {kind.__name__}")
    items = tuple(given)
    for item in items:
        if not isinstance(item, kind):
            refuse(parameter, item, f"give a {kind.__name__}")
    return items


def _check_name(parameter: str, name: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        refuse(parameter, name, "use a letter, then letters, digits, '_', '.' and '-', at most 24 characters")


def _check_distinct(parameter: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            refuse(parameter, name, "it is given twice")
