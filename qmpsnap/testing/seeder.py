"""A program that gives the random number generator of a Linux guest a new seed and key, and sets its clock.

To write to /dev/urandom is not enough: the kernel mixes the bytes into a pool, from which it takes a new key
only after a minute or more (Linux 5.18 and later; on 6.1 two guests with different writes still drew the same
numbers). The ioctl RNDRESEEDCRNG takes the new key at once. No shell has a command for it, so a program of
some 300 bytes, which contains the seed and the time, is copied into the guest and run there.
"""

from __future__ import annotations

import secrets
import struct
import time
from typing import Final

__all__ = ["new_seeder", "seeder"]

_SEED_BYTES: Final = 64
_ADDRESS: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56
_PATH: Final = b"/dev/urandom\0"


def new_seeder(*, clock: bool) -> bytes:
    """Return a `seeder` with 64 random bytes of this host and, if asked for, its time."""
    return seeder(secrets.token_bytes(_SEED_BYTES), now_ns=time.time_ns() if clock else None)


def seeder(seed: bytes, *, now_ns: int | None = None) -> bytes:
    """Return a Linux program for x86-64 that seeds the kernel's random number generator; its status is errno.

    On /dev/urandom it calls ioctl RNDADDENTROPY with the seed, then RNDRESEEDCRNG (random(4)); if there is a
    time, clock_settime(2) comes next.

    Args:
        seed: Its random bytes.
        now_ns: What the clock is set to, in ns since 1970; None: it is not set.
    """
    now = b"" if now_ns is None else struct.pack("<qq", *divmod(now_ns, 10**9))
    pool = struct.pack("<ii", 8 * len(seed), len(seed)) + seed
    length = len(_code(0, with_clock=bool(now)))
    code = _code(length, with_clock=bool(now))
    size = _HEADERS_BYTES + len(code) + len(_PATH) + len(now) + len(pool)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _ADDRESS + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 4096)
    return header + segment + code + _PATH + now + pool


def _code(path: int, *, with_clock: bool) -> bytes:
    """Return the instructions; the path is at this distance from their beginning; time and seed follow it."""
    time_at = path + len(_PATH)
    pool = time_at + (16 if with_clock else 0)
    set_clock = (
        "85c0 7510"  # jump to the end unless it is 0
        "b8e3000000 31ff"  # eax = clock_settime, edi = CLOCK_REALTIME
        f"488d35{_distance(time_at, 74)}"  # rsi = time
        "0f05"
    )
    more = set_clock if with_clock else ""
    return bytes.fromhex(
        "b802000000"  # eax = open
        f"488d3d{_distance(path, 12)}"  # rdi = path
        "be02000000"  # esi = O_RDWR
        "0f05 89c7"  # edi = open(path, O_RDWR)
        "be03520840"  # esi = RNDADDENTROPY
        f"488d15{_distance(pool, 33)}"  # rdx = pool
        "b810000000 0f05"  # eax = ioctl(...)
        f"85c0 75{12 + len(bytes.fromhex(more)):02x}"  # jump to the end unless it is 0
        "be07520000"  # esi = RNDRESEEDCRNG
        "b810000000 0f05"  # eax = ioctl(...)
        f"{more}"
        "f7d8 89c7"  # the end: edi = -eax
        "b83c000000 0f05"  # exit(edi)
    )


def _distance(target: int, following: int) -> str:
    """Encode the distance from the following instruction to a target, as the processor expects it."""
    return struct.pack("<i", target - following).hex()
