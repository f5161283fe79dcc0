"""Finds the argument of each disk of a command line, by the disk's name in qmpsnap, and replaces its image.

QEMU's names for drives without an id are those of blockdev.c (drive_new). They and the numbers of devices
without an id were tried on 7.2, 10.0 and 11.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qmpsnap.errors import Unsupported
from qmpsnap.model.command_line.blockdev import Image, is_written, nodes_of, with_image
from qmpsnap.model.command_line.options import (
    Option,
    Pairs,
    is_json,
    last,
    machine_key,
    read_keys,
    write_keys,
)
from qmpsnap.model.option_hints import Hint, Named

_ID: Final = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)  # of a device; the others are device[0], or a path

_NO_ARGUMENT: Final = Hint(
    "a device on the command line needs this id; for a disk plugged in later, ", Named("launcher")
)

_NO_ID: Final = Hint("give its device an id, or ", Named("launcher"))

_SHORT: Final[Mapping[str, Pairs]] = {
    "": [("index", "0"), ("media", "disk")],
    **{f"-hd{letter}": [("index", str(n)), ("media", "disk")] for n, letter in enumerate("abcd")},
    "-cdrom": [("index", "2"), ("media", "cdrom")],
    "-fda": [("if", "floppy"), ("index", "0")],
    "-fdb": [("if", "floppy"), ("index", "1")],
    "-pflash": [("if", "pflash")],
    "-mtdblock": [("if", "mtd")],
    "-sd": [("if", "sd")],
}
_UNITS: Final = {"ide": 2, "scsi": 7}  # of a bus; elsewhere there is one bus
_ON: Final = frozenset({"on", "yes", "true"})
# Keys that only an image of the former format can have.
_OF_THE_IMAGE: Final = frozenset({"file", "format", "driver", "offset", "size", "backing", "data-file"})
_OF_ENCRYPTION: Final = frozenset({"encrypt", "key-secret"})


# Keys that a drive has whatever its image is. QEMU: qemu_common_drive_opts and legacy options (blockdev.c).
_OF_A_DRIVE: Final = frozenset(
    {"if", "bus", "unit", "index", "id", "media", "node-name", "snapshot", "readonly", "read-only", "aio"}
    | {"auto-read-only", "cache", "discard", "detect-zeroes", "copy-on-read", "werror", "rerror"}
    | {"throttling", "force-share", "stats-account-invalid", "stats-account-failed"}
)


@dataclass(frozen=True, slots=True)
class _Drive:
    option: int  # its place in the command line
    keys: Pairs
    id: str


def disks_of(options: Sequence[Option]) -> dict[str, int | str]:
    """Find each disk of a command line.

    Returns:
        By the disk's name, the index of its option in `options`, or the name of its root node.

    Raises:
        Unsupported: When an option cannot be read.
    """
    drives = {drive.id: drive for drive in _drives(options)}
    nodes = nodes_of(options)
    disks: dict[str, int | str] = {}
    for name, root in _devices(options, drives):
        if root in drives:
            disks.setdefault(name or root, drives[root].option)
        elif root in nodes and name:
            disks.setdefault(name, root)
    for name, drive in drives.items():
        if drive.option not in disks.values():
            disks.setdefault(name, drive.option)
    for number in (0, 1):
        root = machine_key(options, f"pflash{number}")
        if root in nodes:
            disks[f"system.flash{number}"] = root
    return disks


def with_images(
    options: Sequence[Option], images: Mapping[str, str], opened: Mapping[str, Mapping[str, object]]
) -> list[Option]:
    """Return the options with another image, in qcow2, for each of these disks.

    Args:
        options: The options.
        images: Path of the image of each disk, by the disk's name.
        opened: Of those with an encrypted layer, the options that open the image; see `Start.nodes`.

    Raises:
        Unsupported: When the option of a disk is not found or cannot be read; or when a writable disk gets no
            other image, so that two QEMUs would write to the same one.
    """
    disks = disks_of(options)
    changed = list(options)
    roots: dict[str, Image] = {}
    for disk, file in images.items():
        image = Image(file, opened.get(disk))
        match disks.get(disk):
            case None:
                others = f"recognised are {', '.join(disks)}" if disks else "none is recognised"
                raise Unsupported(
                    f"no argument of QEMU's command line is recognised as the disk {disk!r}; {others}",
                    feature=disk,
                    hint=_NO_ARGUMENT if _ID.fullmatch(disk) else _NO_ID,
                )
            case int(place):
                changed[place] = _drive_with(options[place], image)
            case str(root):
                roots[root] = image
    replaced = {disks[disk] for disk in images}
    for disk, where in disks.items():
        if where not in replaced and _is_written(options, where):
            raise Unsupported(
                f"two QEMUs would write to the same image of the disk {disk!r}, which gets no other one",
                feature=disk,
                hint=Hint(
                    Named("image"),
                    ", or ",
                    Named("launcher"),
                    "; a disk that need not keep what is written, such as the flash of a firmware, can have "
                    "readonly=on or snapshot=on",
                ),
            )
    return with_image(changed, roots)


def _is_written(options: Sequence[Option], place: int | str) -> bool:
    """Return whether the guest may write to the image of an option, or of a root node."""
    if isinstance(place, str):
        readers = [read_keys(option, "driver") for option in options if option.name == "-device"]
        return is_written(nodes_of(options), place) and not any(
            last(keys, "drive") == place and last(keys, "driver").endswith("-cd") for keys in readers
        )
    keys = _keys(options[place])
    of_all = "on" if any(option.name == "-snapshot" for option in options) else "off"
    is_read_only = last(keys, "readonly") in _ON or last(keys, "read-only") in _ON
    is_temporary = last(keys, "snapshot", of_all) in _ON
    return _has_medium(keys) and not (is_read_only or is_temporary or last(keys, "media") == "cdrom")


def _has_medium(keys: Pairs) -> bool:
    return any(key.partition(".")[0] in {"file", "filename", "driver"} for key, _ in keys)


def _drive_with(option: Option, image: Image) -> Option:
    keys = _keys(option)
    if any(key.partition(".")[0] == "file" for key, _ in keys):
        keys = [(key, value) for key, value in keys if key.partition(".")[0] not in _OF_THE_IMAGE]
    else:  # `driver=nbd,path=...`: each key may be of that driver
        keys = [(key, value) for key, value in keys if key.partition(".")[0] in _OF_A_DRIVE]
    if image.opened is None:
        return Option("-drive", write_keys([("file", image.file), ("format", "qcow2"), *keys]))
    keys = [(key, value) for key, value in keys if key.partition(".")[0] not in _OF_ENCRYPTION]
    return Option("-drive", write_keys([("file", f"json:{json.dumps(image.opened)}"), *keys]))


def _keys(option: Option) -> Pairs:
    """Return the keys of the option as if it were a -drive."""
    if option.name == "-drive":
        return read_keys(option)
    return [("file", option.value or ""), *_SHORT[option.name]]


def _drives(options: Sequence[Option]) -> Iterator[_Drive]:
    machine = machine_key(options, "type")
    units = {**_UNITS, "ide": 1 if "q35" in machine else 2}
    default = "virtio" if machine.startswith("virt") else "ide"
    places: set[tuple[str, int, int]] = set()
    for number, option in enumerate(options):
        if option.name != "-drive" and option.name not in _SHORT:
            continue
        keys = _keys(option)
        bus = last(keys, "if", default)
        place = _place(option, keys, units.get(bus, 0), {(b, u) for kind, b, u in places if kind == bus})
        if bus != "none":
            places.add((bus, *place))
        medium = ""
        if bus in _UNITS:
            medium = "-cd" if last(keys, "media") == "cdrom" else "-hd"
        of_bus = f"{place[0]}" if units.get(bus) else ""
        yield _Drive(number, keys, last(keys, "id") or f"{bus}{of_bus}{medium}{place[1]}")


def _place(option: Option, keys: Pairs, units: int, others: set[tuple[int, int]]) -> tuple[int, int]:
    """Return bus and unit of a drive: as given, or the first free ones."""
    index, bus, unit = (_number(option, last(keys, key)) for key in ("index", "bus", "unit"))
    if index is not None:
        return divmod(index, units) if units else (0, index)
    if unit is not None:
        return bus or 0, unit
    place = (bus or 0, 0)
    while place in others:
        place = (place[0], place[1] + 1)
        if units and place[1] >= units:
            place = (place[0] + 1, 0)
    return place


def _number(option: Option, text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 5:
        option.refuse(f"{text!r} is not the number of a drive")
    return int(text)


def _devices(options: Sequence[Option], drives: Mapping[str, _Drive]) -> Iterator[tuple[str, str]]:
    """Yield each device with a drive: its name, "" for that of its drive; and its drive or root node.

    QEMU numbers the devices without an id: first those not in JSON, then those of `if=virtio`, then those in
    JSON.
    """
    plain = [option for option in options if option.name in {"-device", "-virtfs"}]
    count = 0
    for in_json in (False, True):
        for option in plain:
            if is_json(option.value or "") is not in_json:
                continue
            keys = read_keys(option, "driver") if option.name == "-device" else []
            name, root = last(keys, "id"), last(keys, "drive")
            if not name:
                name, count = f"device[{count}]", count + 1
                if root in drives:
                    name = ""
            if root:
                yield name, root
        if not in_json:
            count += sum(last(drive.keys, "if") == "virtio" for drive in drives.values())
