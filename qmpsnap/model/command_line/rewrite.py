"""The command line of another QEMU like a first one."""

from __future__ import annotations

from collections.abc import Sequence

from qmpsnap.model.command_line.disks import with_images
from qmpsnap.model.command_line.memory import with_memory
from qmpsnap.model.command_line.options import split
from qmpsnap.model.command_line.own import Own
from qmpsnap.model.start import Start


def for_start(argv: Sequence[str], start: Start) -> list[str]:
    """Rewrite a command line for another QEMU, which may run beside the first.

    Its disks and its memory are those of the start. What only one process can have is made its own in the
    start's directory (sockets, logs), or left out (monitors, forwarded ports, pid files).

    Args:
        argv: The program, also with what it is started by, as in `ip netns exec`; and its arguments.
        start: How the new QEMU differs.

    Raises:
        Unsupported: When an argument is for one process only and its guest would miss it; the message
            names the argument.
    """
    program, options = split(argv)
    options = with_images(options, start.disks)
    options, more = with_memory(options, start)
    own = Own(start.directory)
    kept = [other for option in options if (other := own.of(option)) is not None]
    return [*program, *(word for option in kept for word in option.words), *more]
