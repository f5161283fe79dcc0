"""A machine whose QEMU is our child: its console, its ports, and its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Literal

import anyio

from qmpsnap.errors import QmpsnapError, Unsupported
from qmpsnap.model.arguments import number
from qmpsnap.run.channel import Console, Port
from qmpsnap.run.log import get_logger
from qmpsnap.run.process import QemuProcess
from qmpsnap.run.session import Event
from qmpsnap.run.target import Target
from qmpsnap.vm import VM, Launcher

_log = get_logger("qmpsnap.process")
_QUIT_LIMIT: Final = 10.0  # seconds; QEMU flushes its disks

Ended = Literal["powered-off", "quit", "killed"]
"""How a QEMU ended: by its guest, as it was asked to, or by force."""


class LaunchedVM(VM):
    """A machine that `launch` has started.

    Attributes:
        argv: The command line of its QEMU, without the monitor that is used here.
        qmp: Path of a monitor for other clients; "": none.
    """

    def __init__(
        self,
        target: Target,
        process: QemuProcess,
        *,
        argv: Sequence[str],
        console: Console | None,
        ports: Mapping[str, Port],
        qmp: str,
        state_dir: str,
        launcher: Launcher | None,
    ) -> None:
        super().__init__(target, state_dir=state_dir, launcher=launcher)
        self.argv: Final = tuple(argv)
        self.qmp: Final = qmp
        self._process = process
        self._console = console
        self._ports = ports

    @property
    def console(self) -> Console:
        """The serial console of the machine.

        Raises:
            Unsupported: When `launch` was given a command line, or the description has no console.
        """
        if self._console is None:
            raise Unsupported(
                f"{self.name} has no console here",
                feature="console",
                hint="describe the machine with qmpsnap.Machine(console=True)",
            )
        return self._console

    def port(self, name: str) -> Port:
        """The stream to a virtio-serial port of the guest; the same at each call.

        Raises:
            Unsupported: When `Machine.ports` does not name it.
        """
        if name not in self._ports:
            have = ", ".join(map(repr, self._ports)) or "none"
            raise Unsupported(f"{self.name} has no port {name!r}; its ports: {have}", feature=name)
        return self._ports[name]

    @property
    def exit_status(self) -> int | None:
        """QEMU's exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    @property
    def output(self) -> str:
        """The last 16 KiB that QEMU itself has printed."""
        return self._process.output_tail

    async def wait_ended(self) -> int:
        """Return QEMU's exit status as soon as it has ended."""
        return await self._process.wait()

    async def poweroff(
        self, *, limit: float = 30.0, ask: Callable[[], Awaitable[object]] | None = None
    ) -> Ended:
        """Ask a running guest to power off; if it does not, or is paused, end QEMU by SIGTERM, then kill it.

        QEMU has ended when this returns; the next call on this machine raises LinkLost.

        Args:
            limit: Seconds that the guest may take to power off.
            ask: A function that asks the guest to power off; None: press the power button (ACPI), which many
                small guests ignore.

        Returns:
            How it ended; "powered-off" also when it had ended before.

        QAPI: system_powerdown (machine.json).
        """
        number("limit", limit, zero=True)
        shutdown = anyio.Event()
        reasons: list[bool] = []  # of each SHUTDOWN, whether it was the guest

        def note(event: Event) -> None:
            if event.name == "SHUTDOWN":
                reasons.append(bool(event.data.get("guest")))
                shutdown.set()

        with self.events(note):
            with anyio.move_on_after(limit):
                if self.exit_status is None and await self._ask_guest(ask):
                    await self._wait_off(shutdown)
            if terminated := self.exit_status is None:
                self._process.terminate()
                with anyio.move_on_after(_QUIT_LIMIT):
                    await self.wait_ended()
        if self.exit_status is None:
            self._process.kill()
            await self.wait_ended()
            return "killed"
        # The event may be read only after the end of the process is known.
        by_guest = reasons[0] if reasons else not terminated
        return "powered-off" if by_guest else "quit"

    async def _ask_guest(self, ask: Callable[[], Awaitable[object]] | None) -> bool:
        """Ask the guest to power off; return False if it is not running or cannot be asked."""
        try:
            if not (await self.status()).running:
                return False
            await (ask() if ask is not None else self.execute("system_powerdown"))
        except QmpsnapError as error:
            _log.warning("guest.not_asked", vm=self.name, error=error.message)
            return False
        return True

    async def _wait_off(self, shutdown: anyio.Event) -> None:
        """Return when the guest is off, or QEMU has ended."""
        async with anyio.create_task_group() as tasks:

            async def wait_process() -> None:
                await self.wait_ended()
                tasks.cancel_scope.cancel()

            tasks.start_soon(wait_process)
            await shutdown.wait()
            tasks.cancel_scope.cancel()
