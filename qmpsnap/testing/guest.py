"""A real Linux guest that runs commands and reports what it wrote.

The guest is Debian's cloud kernel and an initramfs; `python -m qmpsnap.testing.guest fetch` puts the parts
into the cache. Commands go over a virtio-serial port whose host end is a unix socket; one client at a time,
and a later one can take over. What the guest runs is bounded in the guest, and the wait for it here.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio

from qmpsnap.errors import GuestFailed
from qmpsnap.testing.guest_command import main
from qmpsnap.testing.guest_requests import Requests, text_of
from qmpsnap.testing.initramfs import SEEDER
from qmpsnap.testing.seeder import new_seeder
from qmpsnap.testing.shell import MIB, Ran, Shell, check_script, now_set, output_of, whole_seconds
from qmpsnap.testing.witness import Witness
from qmpsnap.testing.writer import BLOCK_BYTES, Writes
from qmpsnap.vm import VM

if TYPE_CHECKING:
    from anyio.abc import ByteStream

__all__ = ["Guest", "GuestFailed", "Writer", "open_guest"]

_BOOT_ID: Final = "read -r id < /proc/sys/kernel/random/boot_id && echo $id"
# On top of the guest's own limit: a stopped machine and a slow host take time, too.
_GRACE_S: Final = 15.0
# Where the guest keeps what it reads from its port, or writes there, as it is. The limit is for a guest that
# was reverted to a moment in which it did so: nobody sends the rest.
_FILE: Final = "/tmp/.raw"  # noqa: S108 - in the guest, which has one user
_RAW_LIMIT_S: Final = 10
_RAW: Final = f"timeout -s KILL {_RAW_LIMIT_S} dd count=1 status=none iflag=fullblock"


class Guest(Shell):
    """Our own guest, which answers on its port; also created by `open_guest`.

    Args:
        stream: The port: `LaunchedVM.port(PORT_NAME)`, or a connected socket.
        vm: The machine, if it is known; errors then come sooner, and say more.
        console: Returns the last output on the guest's console, for errors.
    """

    def __init__(
        self, stream: ByteStream, *, vm: VM | None = None, console: Callable[[], str] | None = None
    ) -> None:
        self._stream = stream
        self._witness = Witness(vm, console)
        self._requests = Requests(stream, self._witness)
        self._file_lock = anyio.Lock()

    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b"") -> Ran:
        """Run a shell script as `Shell.execute` says; the shell is busybox's."""
        check_script(script, stdin)
        seconds = whole_seconds(limit)
        if not stdin:
            return await self._ask(script, limit=seconds, most=most, patience=limit + _GRACE_S)
        async with self._file_lock:
            await self._put(stdin)
            with_stdin = f"exec < {_FILE}; rm {_FILE}\n{script}"
            return await self._ask(with_stdin, limit=seconds, most=most, patience=limit + _GRACE_S)

    async def _put(self, data: bytes) -> None:
        """Write bytes into a file of the guest, which reads them from the port as they are."""
        # It reads all of them before it writes, so none is left in the port when the file cannot be written.
        script = f"{_RAW} bs={len(data)} <&3 > {_FILE}"
        ran = await self._ask(script, limit=0, patience=_RAW_LIMIT_S + 2 * _GRACE_S, raw=data)
        output_of(script, ran)

    async def _piece(self, name: str, number: int) -> bytes:
        """Return a piece of a file, which the guest writes to the port as it is."""
        async with self._file_lock:
            # From a file of its own: the other one may become shorter meanwhile.
            script = f"{self._piece_script(name, number)} > {_FILE}; stat -c %s {_FILE}"
            size = int(await self.run(script, limit=60))
            if not 0 <= size <= self._piece_bytes:
                raise GuestFailed(f"the guest returns a piece of {size} bytes", script=script)
            mark = secrets.token_hex(8)
            script = f"echo {mark} >&3; {_RAW} bs={max(size, 1)} < {_FILE} >&3; rm {_FILE}"
            patience = _RAW_LIMIT_S + 2 * _GRACE_S
            ran = await self._ask(script, limit=0, patience=patience, mark=mark, size=size)
            return output_of(script, ran)

    async def quick(self, script: str | Callable[[], str]) -> str:
        """Run a script of a few builtins that prints one line; 3 ms under TCG, where `run` takes 11.

        It has no time limit in the guest: a script that does not end blocks the guest's agent.

        Args:
            script: The script; or what returns it, called each time that it is sent: one that was lost is
                sent again, some seconds later.
        """
        patience = _GRACE_S + _RAW_LIMIT_S  # if it was reverted to where it waits for that
        ran = await self._ask(script, limit=0, patience=patience)
        return output_of(text_of(script), ran).decode()

    async def set_clock(self) -> None:
        """Set the guest's clock, as `Shell.set_clock` says."""
        await self.quick(now_set)

    async def reseed(self, *, clock: bool = False) -> None:
        """Seed the random number generator, and set the clock, as `Shell.reseed` says; some 50 ms under TCG.

        The program is written into a file that may be run already (see `initramfs`), so nothing has to be
        decoded, made executable or removed, each of which would be a process.
        """

        def script() -> str:  # with the time of the moment in which it is sent
            octal = "".join(f"\\{byte:03o}" for byte in new_seeder(clock=clock))
            return (
                # The guest of an older template has no such file.
                f"[ -x {SEEDER} ] || {{ : > {SEEDER}; chmod 700 {SEEDER}; }}\n"
                f"printf '{octal}' > {SEEDER} && {SEEDER} && : > {SEEDER}"
            )

        await self.quick(script)

    async def wait_ready(self, *, limit: float = 120.0) -> str:
        """Return the guest's boot id as soon as it answers."""
        return await self._wait_boot(not_this="", limit=limit)

    async def reset(self, *, limit: float = 120.0) -> None:
        """Let the guest reboot, without unmounting anything, and return when it answers again."""
        boot = await self.wait_ready(limit=limit)
        await self._end_by("(usleep 50000; reboot -f) > /dev/null 2>&1 &", "RESET")
        await self._wait_boot(not_this=boot, limit=limit)

    async def poweroff(self) -> None:
        """Let the guest sync and power off; return when it has started to."""
        await self._end_by("sync; (usleep 50000; poweroff -f) > /dev/null 2>&1 &", "SHUTDOWN")

    async def device(self, serial: str, *, limit: float = 10.0) -> str:
        """Return the device file of the disk with that serial, such as /dev/vda.

        Args:
            serial: The serial, which `guest_argv` makes the disk's name.
            limit: Seconds that the guest has to find it.
        Raises:
            GuestFailed: When the guest sees no such disk.
        """
        # scsi and ata report theirs as a page with a head of four bytes, ata with spaces around it; the
        # kernel scans both after the agent is up, and says nothing at the end.
        path = await self.run(
            f"tries={math.ceil(limit * 20)}\n"
            "while [ $((tries -= 1)) -ge 0 ]; do\n"
            "    for disk in /sys/block/*; do\n"
            "        serial=$(cat $disk/serial || tail -c +5 $disk/device/vpd_pg80 | tr -d ' ')\n"
            f"        [ \"$serial\" != '{serial}' ] || {{ echo /dev/${{disk##*/}}; exit; }}\n"
            "    done\n"
            "    usleep 50000\n"
            "done 2> /dev/null"
        )
        if not path:
            raise GuestFailed(f"the guest sees no disk with serial {serial!r}", script="")
        return path

    async def start_writer(
        self,
        device: str,
        *,
        seed: int = 0,
        blocks: int | None = None,
        burst: int = 4,
        pause_s: float = 0.0,
    ) -> Writer:
        """Start a writer on a whole disk, and return when it has started.

        It writes until it is stopped, or a write fails. A disk can have one writer, and nothing else may
        write to it, because the guest's kernel counts the writes of each disk.

        Args:
            device: The disk, such as /dev/vda.
            seed: What is written where; see `Writes`.
            blocks: Blocks of 64 KiB to write to, from the disk's start; the whole disk if None.
            burst: Neighbouring blocks written in a row; the larger, the faster.
            pause_s: Pause after each burst, in seconds.
        Raises:
            GuestFailed: When there is no such disk, or a writer on it.
        """
        if blocks is None:
            sectors = int(await self.run(f"cat /sys/block/{device.rpartition('/')[2]}/size"))
            blocks = sectors * 512 // BLOCK_BYTES // burst * burst
        writes = Writes(seed=seed, blocks=blocks, burst=burst)
        directory = f"/run/writer/{device.rpartition('/')[2]}"
        arguments = f"{device} {seed} {writes.slots} {burst} {round(pause_s * 1e6)}"
        await self.run(
            f"[ -b {device} ] || {{ echo no such disk; exit 1; }}\n"
            f"[ ! -e {directory} ] || [ -e {directory}/ended ] || {{ echo a writer is there; exit 1; }}\n"
            f"rm -rf {directory}; mkdir -p {directory}\n"
            f"setsid writer {arguments} > {directory}/output 2>&1 < /dev/null &\n"
            f"while [ ! -e {directory}/started ]; do usleep 10000; done"
        )
        return Writer(self, directory=directory, device=device, writes=writes)

    async def _end_by(self, script: str, event: str) -> None:
        """Run a script that ends the guest; on a busy host that may be before the answer is sent."""
        output_of(script, await self._ask(script, limit=60, patience=60 + _GRACE_S, wanted=event))

    async def _wait_boot(self, *, not_this: str, limit: float) -> str:
        with self._witness.watch(doing="the boot", boots=True):
            with anyio.move_on_after(limit):
                while True:
                    # A question is lost when the guest is reset while it is running: it is asked again.
                    try:
                        ran = await self._requests.exchange(_BOOT_ID, limit=0, patience=1)
                    except GuestFailed as error:
                        if error.status is None and not isinstance(error.__cause__, TimeoutError):
                            raise
                        continue
                    boot = ran.output.decode().strip()
                    if ran.status == 0 and boot != not_this:
                        return boot
                    await anyio.sleep(0.02)
            raise await self._witness.explain(f"the guest was not ready after {limit:g} s", "")
        raise AssertionError  # the watch raises when it ends the wait

    async def _ask(
        self,
        script: str | Callable[[], str],
        *,
        limit: int,
        patience: float,
        most: int = MIB,
        wanted: str = "",
        raw: bytes = b"",
        mark: str = "",
        size: int = 0,
    ) -> Ran:
        """Run a script in the guest, until it has ended, or the guest has.

        Args:
            script: The script, or what returns it each time that it is sent.
            limit: Seconds that it has in the guest; 0: it is evaluated by the agent's own shell.
            patience: Seconds until it must be answered.
            most: Largest size of its output, in bytes.
            wanted: Name of an event that is as good as an answer; "": none.
            raw: What the script itself reads from the port: exactly so many bytes.
            mark: A line that the script itself writes to the port, and after it its output.
            size: Size of that output, in bytes.
        """
        with self._witness.watch(text_of(script), wanted=wanted):
            return await self._requests.exchange(
                script,
                limit=limit,
                patience=patience,
                most=most,
                raw=raw,
                mark=mark,
                size=size,
                ends=bool(wanted),
            )
        return Ran(0, b"")  # by the wanted event


class Writer:
    """A writer that runs in the guest; created by `Guest.start_writer`."""

    def __init__(self, guest: Guest, *, directory: str, device: str, writes: Writes) -> None:
        self.device: Final = device
        self.writes: Final = writes
        self._guest = guest
        self._directory = directory

    async def count(self) -> int:
        """Return how many writes the disk has acknowledged.

        One more write may be in flight: a disk that is cut off between two calls that return a and b has
        received a to b + 1 writes.
        """
        name = self.device.rpartition("/")[2]
        answer = await self._guest.quick(
            f"read -r _ _ _ _ _ _ now _ < /sys/block/{name}/stat; read -r first < {self._directory}/sectors\n"
            "echo $((now - first))"
        )
        return int(answer) * 512 // BLOCK_BYTES

    async def longest_gap(self) -> float:
        """Return the longest time in seconds that a burst took since the last such call.

        It is guest time, which stops while the machine is paused: it shows I/O that
        is delayed while the guest runs. An undisturbed burst takes some milliseconds.
        """
        answer = await self._guest.run(f"cd {self._directory}; cat longest 2> /dev/null; rm -f longest")
        return int(answer or "0") / 1e6

    async def stop(self, *, limit: float = 60.0) -> int:
        """Let the writer end after its burst, and return the exact number of writes.

        Raises:
            GuestFailed: When a write had failed, or the burst does not end.
        """
        answer = await self._guest.run(
            f"cd {self._directory} && : > stop && while [ ! -e ended ]; do usleep 5000; done\n"
            "cat ended error",
            limit=limit,
        )
        status, _, error = answer.partition("\n")
        if status != "0":
            text = error.splitlines()[0] if error else "no reason given"
            raise GuestFailed(f"the writer on {self.device} ended by itself: {text}", script="", output=error)
        return await self.count()


@asynccontextmanager
async def open_guest(
    port: Path | str,
    *,
    limit: float = 120.0,
    vm: VM | None = None,
    console: Callable[[], str] | None = None,
) -> AsyncIterator[Guest]:
    """Connect to a guest's port, and wait until it has booted.

    The port is free for the next client when the block is left.

    Args:
        port: The unix socket of the guest's port (see `guest_argv`).
        limit: Seconds until the guest must answer.
        vm: See `Guest`.
        console: See `Guest`.

    Raises:
        GuestFailed: When it does not.
        OSError: When there is no such socket.
    """
    async with await anyio.connect_unix(port) as stream:
        guest = Guest(stream, vm=vm, console=console)
        await guest.wait_ready(limit=limit)
        yield guest


if __name__ == "__main__":
    sys.exit(main())
