"""What all measurements share: which QEMU, how often, a directory, and machines without a guest."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from qemu.qmp import QMPClient

__all__ = ["MIB", "Bench", "bare_client", "listens"]

MIB = 1024 * 1024
LISTENS = 1 << 16  # flag of a listening socket in /proc/net/unix
CHEAP = ["-M", "q35", "-m", "64", "-nodefaults", "-display", "none", "-S", "-accel", "tcg"]


class Bench:
    """What all measurements share: the QEMU, how often, and a directory that is emptied at the end."""

    def __init__(self, qemu: Path, runs: int, directory: Path) -> None:
        self.qemu, self.runs, self.directory = qemu, runs, directory
        self._number = 0

    def fresh(self) -> Path:
        self._number += 1
        path = self.directory / str(self._number)
        path.mkdir()
        return path

    def image(self, *words: object) -> None:
        subprocess.run([self.qemu / "qemu-img", *map(str, words)], check=True, stdout=subprocess.DEVNULL)

    def fill(self, file: Path, command: str) -> None:
        arguments = [self.qemu / "qemu-io", "-f", "qcow2", "-c", command, file]
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)

    @contextlib.contextmanager
    def machine(self, directory: Path, files: list[Path], *more: str):
        """A QEMU without a guest; yields the path of its socket."""
        arguments = [str(self.qemu / "qemu-system-x86_64"), *CHEAP, "-pidfile", str(directory / "pid"), *more]
        socket = directory / "qmp.sock"
        arguments += ["-qmp", f"unix:{socket},server=on,wait=off"]
        for number, file in enumerate(files):
            arguments += ["-drive", f"file={file},if=none,id=drive{number},format=qcow2"]
            arguments += ["-device", f"virtio-blk-pci,drive=drive{number},id=disk{number}"]
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ((directory / "pid").exists() and listens(socket)):
                if process.poll() is not None:
                    raise SystemExit(f"QEMU did not start: {arguments}")
                time.sleep(0.005)
            yield str(socket)
        finally:
            process.kill()
            process.wait()


def listens(path: Path) -> bool:
    """Whether a server listens there; its name is made a moment before. No client: QEMU serves one."""
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(words[-1] == str(path) and int(words[3], 16) & LISTENS for words in sockets)


@contextlib.asynccontextmanager
async def bare_client(socket: str):
    client = QMPClient("bench")
    await client.connect(socket)
    try:
        yield client
    finally:
        with contextlib.suppress(EOFError, OSError):
            await client.disconnect()
