"""Corrects what is out of date in a guest after a revert, a clone or a fork.

The guest's memory is that of the checkpoint, and so are its clock, the state of the kernel's random number
generator, the host name and the address of each network card. Two guests from the same checkpoint would draw
the same random numbers: the same keys, UUIDs and ports.

To write to /dev/urandom is not enough: the kernel mixes the bytes into a pool, from which it takes a new key
only after a minute or more (Linux 5.18 and later; on 6.1 two guests with different writes still drew the same
numbers). The ioctl RNDRESEEDCRNG takes the new key at once. No shell has a command for it, so a program of
272 bytes, which contains the seed, is copied into the guest, run once, and removed.
"""

from __future__ import annotations

import base64
import secrets
import shlex
import struct
from collections.abc import Mapping
from typing import Final

from qmpsnap.errors import Unsupported
from qmpsnap.launched import LaunchedVM
from qmpsnap.testing.agent import PORT_NAME as AGENT_PORT
from qmpsnap.testing.agent import open_agent
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.shell import Shell
from qmpsnap.vm import VM

__all__ = ["wake", "wake_by_agent", "wake_guest"]

_SEED_BYTES: Final = 64
_ADDRESS: Final = 0x400000
_HEADERS_BYTES: Final = 64 + 56
# mktemp's directory may be mounted noexec; status 126 says so.
_RESEED: Final = """\
status=126
for directory in /run /tmp /dev/shm /var/tmp /root; do
    program=$(mktemp -p $directory 2> /dev/null) || continue
    echo PROGRAM | base64 -d > "$program" && chmod 700 "$program" && "$program"
    status=$?
    rm -f "$program"
    [ $status = 126 ] || break
done
[ $status = 0 ] || echo "the kernel does not take a new seed (error $status)"
exit $status
"""


async def wake(
    shell: Shell,
    *,
    clock: bool = True,
    seed: bool = True,
    hostname: str = "",
    macs: Mapping[str, str] | None = None,
) -> None:
    """Set the guest's random seed, clock, host name and MAC addresses, as asked for, in this order.

    Args:
        shell: A shell in the guest, of root.
        clock: Whether its clock is set to that of this host.
        seed: Whether its random number generator gets 64 random bytes of this host and takes a new key at
            once. Only on x86-64; for other guests give False, and reseed the generator in another way.
        hostname: Its new host name; "": the same.
        macs: New MAC addresses, by the network card's name in the guest. The card goes down and up, so its
            routes have to be set again.

    Raises:
        GuestFailed: When one of them cannot be set; those before it have been set.
    """
    if seed:
        program = base64.b64encode(seeder(secrets.token_bytes(_SEED_BYTES))).decode()
        await shell.run(_RESEED.replace("PROGRAM", program))
    if clock:
        await shell.set_clock()
    if hostname:
        await shell.run(f"hostname {shlex.quote(hostname)}")
    for card, mac in (macs or {}).items():
        name = shlex.quote(card)
        await shell.run(
            f"ip link set dev {name} down && ip link set dev {name} address {shlex.quote(mac)} && "
            f"ip link set dev {name} up"
        )


async def wake_guest(vm: VM) -> None:
    """Set clock and seed of our own guest, over its port; a `wake` for `VM.revert` and the others.

    Raises:
        Unsupported: When the machine was not started by `launch` from a description with that port.
        GuestFailed: As `wake`.
    """
    await wake(Guest(_require_launched(vm).port(PORT_NAME)))


async def wake_by_agent(vm: VM) -> None:
    """Set clock and seed of a guest through its agent; a `wake` for `VM.revert` and the others.

    Raises:
        Unsupported: When the machine was not started by `launch` from a description with the agent's port.
        GuestFailed: As `wake`.
    """
    async with open_agent(_require_launched(vm).port(AGENT_PORT), vm=vm) as shell:
        await wake(shell)


def seeder(seed: bytes) -> bytes:
    """Return a Linux program for x86-64 that seeds the kernel's random number generator; its status is errno.

    On /dev/urandom it calls ioctl RNDADDENTROPY with the seed, then RNDRESEEDCRNG (random(4)).

    Args:
        seed: Its random bytes.
    """
    path = b"/dev/urandom\0"
    pool = struct.pack("<ii", 8 * len(seed), len(seed)) + seed
    length = len(_code(0, 0))
    code = _code(length, length + len(path))
    size = _HEADERS_BYTES + len(code) + len(path) + len(pool)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _ADDRESS + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 4096)
    return header + segment + code + path + pool


def _code(path: int, pool: int) -> bytes:
    """Return the instructions; the path and the pool are at these distances from their beginning."""
    return bytes.fromhex(
        "b802000000"  # eax = open
        f"488d3d{_distance(path, 12)}"  # rdi = path
        "be02000000"  # esi = O_RDWR
        "0f05 89c7"  # edi = open(path, O_RDWR)
        "be03520840"  # esi = RNDADDENTROPY
        f"488d15{_distance(pool, 33)}"  # rdx = pool
        "b810000000 0f05"  # eax = ioctl(...)
        "85c0 750c"  # jump to the end unless it is 0
        "be07520000"  # esi = RNDRESEEDCRNG
        "b810000000 0f05"  # eax = ioctl(...)
        "f7d8 89c7"  # the end: edi = -eax
        "b83c000000 0f05"  # exit(edi)
    )


def _distance(target: int, following: int) -> str:
    """Encode the distance from the following instruction to a target, as the processor expects it."""
    return struct.pack("<i", target - following).hex()


def _require_launched(vm: VM) -> LaunchedVM:
    if not isinstance(vm, LaunchedVM):
        raise Unsupported(
            f"{vm.name} was not started here, so its ports are not known",
            feature="ports",
            hint="give a function of your own, which opens a shell in the guest and calls wake(shell)",
        )
    return vm
