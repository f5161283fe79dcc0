"""How long a stream of VM state can become, from the memory that QEMU has in use.

QEMU writes a page that holds nothing but zeros as a few bytes. A page of private anonymous memory that holds
something else is resident or swapped, and the kernel counts both. Of memory that may be shared or comes from
a file the kernel does not count for this process what another one has written, or what is swapped: there all
of the mapping is taken.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from qmpsnap.model.frozen import Frozen

_OTHERS = 160 << 20  # bytes of RAM beside the guest's: video memory, firmware
_DEVICES = 8 << 20  # bytes: the state of the devices, and what QEMU itself writes to a paused guest's memory
_PAGES_HEADER = 64  # a page of 4096 bytes has a header of 9, or of 10 and the name of its block of memory
_ENTRY = 8  # bytes of a page table's entry
_COUNTERS = 2  # RssAnon and VmSwap
_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ .*$", re.MULTILINE)  # of a mapping in smaps
_IN_USE = re.compile(r"^(?:Anonymous|Swap): +(\d+) kB$", re.MULTILINE)


class _Mapping(Struct, frozen=True):
    addresses: str
    permissions: str
    file: tuple[str, str]  # device and inode
    path: str

    @property
    def size_bytes(self) -> int:
        start, _, end = self.addresses.partition("-")
        return int(end, 16) - int(start, 16)

    @property
    def is_counted(self) -> bool:
        """Whether it is private and anonymous."""
        return "s" not in self.permissions and self.file[1] == "0" and not self.path.startswith("/")

    @property
    def is_code(self) -> bool:
        """Whether it can be run."""
        return "x" in self.permissions

    @property
    def is_translated(self) -> bool:
        """Whether QEMU writes there what it translates of an emulated guest's code."""
        return self.is_code and "w" in self.permissions and self.is_counted


def most_bytes(memory_bytes: int) -> int:
    """The length that no stream of a machine with so much RAM exceeds."""
    return memory_bytes + _OTHERS


def stream_bytes(occupied_bytes: int | None, *, at_most_bytes: int) -> int:
    """The length that a stream of the memory as it is does not exceed.

    Args:
        occupied_bytes: As `occupied_bytes` returns it; None: unknown.
        at_most_bytes: The length that a stream does not exceed whatever the memory holds.
    """
    if occupied_bytes is None:
        return at_most_bytes
    return min(at_most_bytes, occupied_bytes + at_most_bytes // _PAGES_HEADER + _DEVICES)


def has_code(maps: str) -> bool:
    """Whether the process has translated code, from the text of /proc/PID/maps."""
    return any(each.is_translated for each in map(_mapping, maps.splitlines()))


def code_bytes(smaps: str) -> Mapping[str, int]:
    """Bytes in use of each mapping of translated code, by its addresses, from the text of /proc/PID/smaps.

    QEMU does not give back what it has used of them, so that they have no fewer later.
    """
    found = {}
    for header in _HEADER.finditer(smaps):
        mapping = _mapping(header[0])
        if mapping.is_translated:
            after = _HEADER.search(smaps, header.end())
            lines = smaps[header.end() : after.start() if after else len(smaps)]
            found[mapping.addresses] = sum(int(value) << 10 for value in _IN_USE.findall(lines))
    return Frozen(found)


def occupied_bytes(
    status: str, maps: str, code: Mapping[str, int] = Frozen(), *, cpus: int, page_bytes: int
) -> int | None:
    """Bytes of a process's memory that can hold a guest's data, at most; None if the kernel does not say.

    Files of which a part is mapped as code are programs and libraries, which are no guest's memory.

    Args:
        status: The text of /proc/PID/status.
        maps: The text of /proc/PID/maps.
        code: As `code_bytes` returned it, now or earlier.
        cpus: Number of the host's CPUs.
        page_bytes: Size of the host's pages.
    """
    values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    try:
        counted = sum(int(values[name].split()[0]) << 10 for name in ("RssAnon", "VmSwap"))
        threads = int(values["Threads"])
        mappings = tuple(map(_mapping, maps.splitlines()))
    except (KeyError, ValueError, IndexError):
        return None
    if not mappings:
        return None
    translated = sum(code.get(each.addresses, 0) for each in mappings if each.is_translated)
    # From 6.12 on the kernel may take back what is zero of a huge page; each thread fills one at a time.
    huge_page = page_bytes * (page_bytes // _ENTRY)
    translated = max(0, translated - threads * huge_page)
    programs = {each.file for each in mappings if each.is_code and each.file[1] != "0"}
    uncounted = sum(each.size_bytes for each in mappings if not each.is_counted and each.file not in programs)
    # The kernel adds up what it has counted: until 6.1 after 64 pages of each thread, then after
    # max(32, 2 * CPUs) pages of each CPU (lib/percpu_counter.c); since 6.17 it tells the exact sum.
    late_pages = max(64 * threads, cpus * max(32, 2 * cpus))
    return max(0, counted - translated) + uncounted + _COUNTERS * late_pages * page_bytes


def _mapping(line: str) -> _Mapping:
    addresses, permissions, _, device, inode, *path = line.split(maxsplit=5)
    return _Mapping(addresses, permissions, (device, inode), path[0] if path else "")
