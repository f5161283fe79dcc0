"""The options of the pytest plugin, as its fixtures have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QmpsnapOptions:
    """The options of the command line, or else of the ini file.

    Attributes:
        qemu: The system emulator: its path, its directory, or "" for the one on PATH.
        accel: kvm or tcg; "": kvm where it works.
        memory_mib: Size of the guest's memory in MiB; 0: the machine's own.
        reset: How machines are reset; "": the fastest way that works for each.
        boot_limit: Seconds that a guest may take until it is ready.
        spare: yes or no: whether a second QEMU is reset while a test uses the first; "": where it pays.
        keep: Whether the overlays of a failed test are kept, too.
        artifacts: Directory for the folders of failed tests; "": pytest's own temporary directory.
    """

    qemu: str
    accel: str
    memory_mib: int
    reset: str
    boot_limit: float
    spare: str
    keep: bool
    artifacts: str
