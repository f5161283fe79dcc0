"""The command `python -m qmpsnap.testing.guest`, for users without a checkout and for scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qmpsnap.errors import QmpsnapError
from qmpsnap.testing.fetching import fetch, fetch_agent
from qmpsnap.testing.machine import find_guest_image

__all__ = ["main"]

_EPILOG = """\
fetch   put kernel, modules, busybox and the QEMU guest agent into the cache, by apt (Debian, Ubuntu);
        nothing is installed
where   print the paths of the kernel and of the initramfs, which is made if need be
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the verbs; return the exit code, that of the error's class.

    Args:
        arguments: The words after the module's name; None: those of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m qmpsnap.testing.guest",
        description="The Linux guest of tests.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=["fetch", "where"])
    verb = parser.parse_args(arguments).verb
    try:
        if verb == "fetch":
            sys.stdout.write(f"{fetch()}\n{fetch_agent()}\n")
        else:
            image = find_guest_image()
            sys.stdout.write(f"{image.kernel}\n{image.initrd}\n")
    except QmpsnapError as error:
        sys.stderr.write(f"{error.message}\n" + (f"next: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    return 0
