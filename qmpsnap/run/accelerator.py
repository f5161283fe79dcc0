"""Which accelerator works on this host."""

from __future__ import annotations

import os

from qmpsnap.errors import Unsupported
from qmpsnap.model.machine_description import Accelerator
from qmpsnap.run.safe_open import open_character, open_file


def accelerator() -> Accelerator:
    """Return the accelerator that works here; QMPSNAP_ACCEL forces either.

    /dev/kvm can exist and open where a guest then hangs before its first line (seen on hosts
    without these CPU flags), so the flags are checked, too.

    Raises:
        Unsupported: When QMPSNAP_ACCEL is neither kvm nor tcg.
    """
    forced = os.environ.get("QMPSNAP_ACCEL", "")
    match forced:
        case "kvm" | "tcg":
            return forced
        case "":
            pass
        case _:
            raise Unsupported(f"QMPSNAP_ACCEL is {forced!r}, not kvm or tcg", feature=forced)
    try:
        with os.fdopen(open_file("/proc/cpuinfo"), "rb") as text:
            flags = set(text.read().split())
        os.close(open_character("/dev/kvm"))
    except OSError:
        return "tcg"
    return "kvm" if flags & {b"vmx", b"svm"} else "tcg"
