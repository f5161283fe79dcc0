"""Rewrites a command line for another QEMU of the same machine."""

from __future__ import annotations

from collections.abc import Sequence

from qmpsnap.model.command_line.disks import with_images
from qmpsnap.model.command_line.memory import with_memory
from qmpsnap.model.command_line.options import Option, split
from qmpsnap.model.command_line.own import Own
from qmpsnap.model.start import Start


def for_start(argv: Sequence[str], start: Start) -> list[str]:
    """Rewrite a command line for another QEMU, which may run beside the first.

    Its disks and its memory are those of the start. What only one process can have is replaced by a file in
    the start's directory (sockets, logs), or left out (monitors, forwarded ports, pid files, displays).

    Args:
        argv: The program, maybe after a wrapper such as `ip netns exec`, and its arguments.
        start: How the new QEMU differs.

    Raises:
        Unsupported: When only one process can use an argument, and the guest would notice its absence; the
            message names the argument.
    """
    program, options = split(argv)
    own = Own(start.directory, alone=start.alone)
    for option in options:
        if option.name == "-readconfig":  # before its disks are missed on the command line
            own.of(option)
    options = with_images(options, start.disks, start.nodes)
    options, more = with_memory(options, start)
    rewritten = [other for option in options if (other := own.of(option)) is not None]
    if not {"-display", "-nographic"} & {option.name for option in rewritten}:
        rewritten.append(Option("-display", "none"))  # else it would open a window
    return [*program, *(word for option in rewritten for word in option.words), *more]
