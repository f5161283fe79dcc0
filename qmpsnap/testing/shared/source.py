"""The descriptions of a machine that a test suite may give, and how each becomes a launcher."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, cast

from qmpsnap.errors import Unsupported
from qmpsnap.launching import launch
from qmpsnap.model.arguments import path_text, refuse
from qmpsnap.model.command_line.disks import with_images
from qmpsnap.model.command_line.options import split
from qmpsnap.model.machine_description import Accelerator, Machine, MachineDisk, escaped, words
from qmpsnap.model.option_hints import OptionName, reword
from qmpsnap.model.start import Start
from qmpsnap.run.accelerator import accelerator
from qmpsnap.testing.machine import guest_machine
from qmpsnap.testing.shared.pool import Source
from qmpsnap.testing.shared.reset import CONSOLE_LOG
from qmpsnap.vm import VM, Launcher

_QEMU: Final = "qemu-system-x86_64"
_MEMORY_MIB: Final = 128


_WORDS: Final[Mapping[OptionName, str]] = {
    "image": "name an image for it in qmpsnap_disks",
    "launcher": "return a launcher from qmpsnap_machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """The options of the command line or the ini file that change every described machine.

    Attributes:
        cwd: The directory that relative paths count from, in which QEMU runs; "": the current one.
        qemu: The system emulator, its directory, or "" for the machine's own.
        accel: kvm or tcg; "": the machine's own.
        memory_mib: Size of its memory in MiB; 0: the machine's own.
    """

    cwd: str = ""
    qemu: str = ""
    accel: str = ""
    memory_mib: int = 0

    def of(self, machine: Machine) -> Machine:
        """Return the machine with these options."""
        accel = cast("Accelerator | None", self.accel or None)
        return replace(
            machine,
            qemu=find_qemu(self.qemu or str(machine.qemu), cwd=self.cwd),
            accel=accel or machine.accel or accelerator(),
            memory_mib=self.memory_mib or machine.memory_mib,
        )


def source_of(machine: object, disks: Mapping[str, object], ready: object, *, overrides: Overrides) -> Source:
    """Return the machine that the fixtures of a test suite describe.

    Args:
        machine: What qmpsnap_machine returned: a Machine, a command line, a launcher, or None for our own
            guest.
        disks: What qmpsnap_disks returned, unless the machine is a Machine: for each disk a path, or a path
            and a format.
        ready: What qmpsnap_ready returned; see `Source`.
        overrides: The options.

    Raises:
        BadArgument: When an argument is invalid.
        Unsupported: When QEMU, or the kernel of our guest, is not found; when the disks are not those that a
            command line lets the guest write to.
    """
    if not (ready is None or isinstance(ready, str) or callable(ready)):
        refuse("qmpsnap_ready", ready, "return text, a coroutine function, or None")
    disk_list = _disks(disks)
    if machine is None:
        machine = guest_machine(disks=disk_list, memory_mib=_MEMORY_MIB)
    elif isinstance(machine, Machine) and disk_list:
        refuse("qmpsnap_disks", disks, "a Machine names its own disks")
    # A function of the suite's would run beside a test, and may use what that test uses.
    repeatable = isinstance(machine, Machine) and _is_repeatable(machine) and not callable(ready)
    if isinstance(machine, Machine):
        disk_list, launcher = machine.disks, launcher_of_machine(overrides.of(machine), cwd=overrides.cwd)
    elif callable(machine):
        launcher = cast("Launcher", machine)
    elif isinstance(machine, list | tuple):
        _refuse_other_disks(machine, disk_list)
        launcher = partial(_launch, machine, overrides.cwd)
    else:
        refuse("qmpsnap_machine", machine, "return a qmpsnap.Machine, a command line, or a launcher")
    files = {disk.name: path_text("file", disk.file) for disk in disk_list}
    formats = {disk.name: disk.format for disk in disk_list}
    return Source(launcher, files, formats, ready, cwd=overrides.cwd, repeatable=repeatable)


def _is_repeatable(machine: Machine) -> bool:
    """Say whether two such machines share nothing; arguments and networks may name ports and files."""
    return not machine.arguments and all(nic.netdev == "user" for nic in machine.nics)


def launcher_of_machine(machine: Machine, *, cwd: str = "") -> Launcher:
    """Return a launcher whose QEMUs put the console's log, and a socket for each port, in their directory.

    Args:
        machine: The machine.
        cwd: The directory in which QEMU runs; "": the current one.
    """

    def launcher(start: Start) -> AbstractAsyncContextManager[VM]:
        place = Path(start.directory)
        argv = machine.argv(
            start,
            console=f"file,path={escaped(place / CONSOLE_LOG)},append=on",
            ports={name: f"socket,path={escaped(place / name)},server=on,wait=off" for name in machine.ports},
        )
        return launch(argv, log=place / "qemu.log", cwd=cwd or None)

    return launcher


def _refuse_other_disks(argv: Sequence[str], disks: Sequence[MachineDisk]) -> None:
    """Refuse a command line if qmpsnap_disks leaves out a disk that can be written to, or has one more."""
    _, options = split(words("qmpsnap_machine", argv))
    try:
        with_images(options, {disk.name: path_text("file", disk.file) for disk in disks}, {})
    except Unsupported as error:
        reword(error, _WORDS)
        raise


def _launch(argv: Sequence[str], cwd: str, start: Start) -> AbstractAsyncContextManager[VM]:
    return launch(argv, start=start, cwd=cwd or None)


def _disks(files: Mapping[str, object]) -> Sequence[MachineDisk]:
    disks = []
    for name, value in files.items():
        file, kind = value if isinstance(value, tuple) else (value, "qcow2")
        disks.append(MachineDisk(name=name, file=file, format=kind))
    return disks


def find_qemu(given: str, *, cwd: str = "") -> str:
    """Return the path of a system emulator.

    Args:
        given: Its path, its name on PATH, or its directory.
        cwd: The directory that a relative path counts from; "": the current one.

    Raises:
        Unsupported: When there is none.
    """
    directory = Path(cwd, given)
    if directory.is_dir():
        missing, program = f"there is no {_QEMU} in {given!r}", shutil.which(directory / _QEMU)
    else:
        missing = f"there is no QEMU {given!r}"
        program = shutil.which(directory if "/" in given else given)
    if program is None:
        raise Unsupported(
            missing,
            feature="qemu",
            hint="install qemu-system-x86, or name a QEMU with --qmpsnap-qemu",
        )
    return program
