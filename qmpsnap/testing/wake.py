"""Corrects what is out of date in a guest after a revert, a clone or a fork.

The guest's memory is that of the checkpoint, and so are its clock, the state of the kernel's random number
generator, the host name and the address of each network card. Two guests from the same checkpoint would draw
the same random numbers: the same keys, UUIDs and ports.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from qmpsnap.errors import Unsupported
from qmpsnap.launched import LaunchedVM
from qmpsnap.testing.agent import PORT_NAME as AGENT_PORT
from qmpsnap.testing.agent import open_agent
from qmpsnap.testing.guest import Guest
from qmpsnap.testing.initramfs import PORT_NAME
from qmpsnap.testing.shell import Shell
from qmpsnap.vm import VM

__all__ = ["wake", "wake_by_agent", "wake_guest"]


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
        await shell.reseed(clock=clock)
    elif clock:
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


def _require_launched(vm: VM) -> LaunchedVM:
    if not isinstance(vm, LaunchedVM):
        raise Unsupported(
            f"{vm.name} was not started here, so its ports are not known",
            feature="ports",
            hint="give a function of your own, which opens a shell in the guest and calls wake(shell)",
        )
    return vm
