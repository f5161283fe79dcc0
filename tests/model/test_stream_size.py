"""What the kernel says of a process's memory, against how long QEMU's stream of it can become."""

from __future__ import annotations

import pytest

from qmpsnap.model.stream_size import code_bytes, has_code, most_bytes, occupied_bytes, stream_bytes
from tests.each import each

MIB = 1 << 20
STATUS = """Name:\tqemu-system-x86
VmRSS:\t   37160 kB
RssAnon:\t  102400 kB
RssFile:\t   22096 kB
RssShmem:\t       0 kB
VmSwap:\t   10240 kB
Threads:\t5
"""
# A program, its heap, a guest's 256 MiB, translated code, and what no process has written.
PLAIN = """55a1fa58c000-55a1fa98c000 r--p 00000000 fe:00 1234 /usr/bin/qemu-system-x86_64
55a1fa98c000-55a1faf8c000 r-xp 00400000 fe:00 1234 /usr/bin/qemu-system-x86_64
55a1faf8c000-55a1fb18c000 rw-p 00a00000 fe:00 1234 /usr/bin/qemu-system-x86_64
55a1fc000000-55a1fd154000 rw-p 00000000 00:00 0                          [heap]
7f1a00000000-7f1a10000000 rw-p 00000000 00:00 0
7f1a20000000-7f1a5ffff000 rwxp 00000000 00:00 0
7ffc2d1d8000-7ffc2d1f9000 rw-p 00000000 00:00 0                          [stack]
7ffc2d1fb000-7ffc2d1fd000 r-xp 00000000 00:00 0                          [vdso]
"""
CODE = "7f1a20000000-7f1a5ffff000"
LATE = 2 * 64 * 5 * 4096  # 64 pages of each of five threads, by two counters


def occupied(maps: str = PLAIN, status: str = STATUS, cpus: int = 2, code: int = 0) -> int | None:
    return occupied_bytes(status, maps, {CODE: code}, cpus=cpus, page_bytes=4096)


def test_occupied_bytes_are_what_is_resident_or_swapped_of_anonymous_memory() -> None:
    assert occupied() == 110 * MIB + LATE


def test_occupied_bytes_allow_for_what_the_kernel_has_not_added_up_on_a_large_host() -> None:
    assert occupied(cpus=128) == 110 * MIB + 2 * 128 * 256 * 4096


@each(
    "mapping",
    [
        "7f2a00000000-7f2a10000000 rw-s 00000000 00:01 77 /memfd:memory-backend-memfd (deleted)",
        "7f2a00000000-7f2a10000000 rw-s 00000000 00:01 77 /dev/zero (deleted)",
        "7f2a00000000-7f2a10000000 rw-s 00000000 00:01 0 /SYSV00000000 (deleted)",
        "7f2a00000000-7f2a10000000 rw-p 00000000 00:0f 77 /anon_hugepage (deleted)",
        "7f2a00000000-7f2a10000000 rw-p 00000000 00:1a 77 /dev/shm/ram with blanks",
        "7f2a00000000-7f2a10000000 r--s 00000000 fe:00 77 /var/lib/nvdimm",
        "7f2a00000000-7f2a10000000 rw-s 00000000 00:00 0",
    ],
)
def test_occupied_bytes_have_all_of_a_mapping_that_is_shared_or_of_a_file(mapping: str) -> None:
    assert occupied(f"{PLAIN}{mapping}\n") == 110 * MIB + 256 * MIB + LATE


def test_occupied_bytes_have_of_code_only_a_huge_page_of_each_thread() -> None:
    assert occupied(code=40 * MIB) == 80 * MIB + LATE
    assert occupied(code=9 * MIB) == 110 * MIB + LATE


@each("now", ["7f1a20000000-7f1a5fff0000 rwxp", "7f1a20000000-7f1a5ffff000 rw-p"])
def test_occupied_bytes_have_all_of_code_whose_mapping_is_another_by_now(now: str) -> None:
    assert occupied(PLAIN.replace(f"{CODE} rwxp", now), code=40 * MIB) == 110 * MIB + LATE


@each(
    ("maps", "status"),
    [
        ("", STATUS),
        ("no mapping\n", STATUS),
        (PLAIN, STATUS.replace("RssAnon", "Rss")),
        (PLAIN, STATUS.replace("VmSwap", "Swap")),
        (PLAIN, STATUS.replace("Threads:\t5", "Threads:\tx")),
        (PLAIN, STATUS.replace("102400 kB", "")),
        (PLAIN, ""),
    ],
)
def test_occupied_bytes_are_unknown_where_the_kernel_does_not_say(maps: str, status: str) -> None:
    assert occupied(maps, status) is None


SMAPS = f"""7f1a00000000-7f1a10000000 rw-p 00000000 00:00 0
Size:             262144 kB
Anonymous:        131072 kB
Swap:                  0 kB
VmFlags: rd wr mr mw me ac sd hg mg
{CODE} rwxp 00000000 00:00 0
Size:            1048572 kB
Anonymous:         40960 kB
AnonHugePages:     40960 kB
Swap:               1024 kB
SwapPss:            1024 kB
VmFlags: rd wr ex mr mw me ac sd hg
55a1fa98c000-55a1faf8c000 r-xp 00400000 fe:00 1234 /usr/bin/qemu-system-x86_64
Anonymous:           512 kB
"""


def test_code_bytes_are_those_of_anonymous_memory_that_can_be_run() -> None:
    assert code_bytes(SMAPS) == {CODE: 41 * MIB}


def test_has_code_only_where_anonymous_memory_can_be_run() -> None:
    assert has_code(PLAIN)
    assert not has_code(PLAIN.replace("rwxp", "rw-p"))


def test_code_of_what_is_no_such_text_is_an_error() -> None:
    for look in (code_bytes, has_code):
        with pytest.raises(ValueError, match="not enough values"):
            look("7f1a20000000-7f1a5ffff000 rwxp\n")
    assert code_bytes("") == {}


@each(
    ("occupied", "expected"),
    [
        (None, 416 * MIB),
        (0, (6 * MIB + MIB // 2) + 8 * MIB),
        (100 * MIB, 100 * MIB + (6 * MIB + MIB // 2) + 8 * MIB),
        (500 * MIB, 416 * MIB),
    ],
)
def test_stream_bytes_allow_for_headers_and_devices_up_to_the_most(
    occupied: int | None, expected: int
) -> None:
    assert most_bytes(256 * MIB) == 416 * MIB
    assert stream_bytes(occupied, at_most_bytes=416 * MIB) == expected
