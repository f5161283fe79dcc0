"""The command `python -m qmpsnap.testing.guest`, for users without a checkout and for scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from qmpsnap.errors import Interrupted, QmpsnapError
from qmpsnap.testing.fetching import agent_directory, fetch, fetch_agent, guest_directory
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
            if not (guest_directory().is_dir() and agent_directory().is_dir()):
                _say("downloading 30 MB by apt, which takes up to a minute")
            for part in (fetch, fetch_agent):
                sys.stdout.write(f"{part()}\n")
                sys.stdout.flush()
        else:
            image = find_guest_image()
            sys.stdout.write(f"{image.kernel}\n{image.initrd}\n")
    except QmpsnapError as error:
        _say(error.message, *([f"next: {error.hint}"] if error.hint else []))
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; the next call begins anew")
        return Interrupted.exit_code
    return 0


def _say(*lines: str) -> None:
    sys.stderr.writelines(f"{line}\n" for line in lines)
