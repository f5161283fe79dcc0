"""Commands in any guest that runs the QEMU guest agent."""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from itertools import chain, repeat
from typing import Final

import anyio
from anyio.abc import ByteStream

from qmpsnap.errors import CommandFailed, GuestFailed
from qmpsnap.run.agent import Agent
from qmpsnap.testing.shell import MIB, Ran, Shell, check_script, shorten, whole_seconds
from qmpsnap.testing.shell_scripts import KILL_ALL
from qmpsnap.testing.witness import Witness
from qmpsnap.vm import VM

__all__ = ["PORT_NAME", "AgentShell", "open_agent"]

PORT_NAME: Final = "org.qemu.guest_agent.0"
_GRACE_S: Final = 15.0
_SLOWEST: Final = 32 * 1024  # bytes/s: an agent parses JSON byte by byte
_POLLS_S: Final = (
    0.01,
    0.02,
    0.05,
    0.1,
)  # and 0.2 from then on: the agent sends no event when a process ends
# $1: limit, $2: bytes, $3: script. What the agent itself collects it cuts at 16 MiB.
_WRAPPER: Final = f"""{KILL_ALL}
file=$(mktemp 2> /dev/null || mktemp -p /run 2> /dev/null || mktemp -p /dev/shm) || exit 126
QMPSNAP_RUN=$file timeout -s KILL "$1" sh -c "$3" > "$file" 2>&1
status=$?
[ $status != 137 ] || kill_all "$file"
head -c "$2" "$file"
rm -f "$file"
exit $status
"""


class AgentShell(Shell):
    """A shell through the guest agent; created by `open_agent`.

    The guest may forbid guest-exec (Red Hat's guests do by default); `run` then raises a GuestFailed that
    says so.

    Attributes:
        agent: The agent, for its other commands.
    """

    def __init__(self, agent: Agent, *, vm: VM | None = None, port_id: str = "") -> None:
        self.agent: Final = agent
        self._witness = Witness(vm, port_id=port_id)
        self._lock = anyio.Lock()

    async def execute(self, script: str, *, limit: float = 30.0, most: int = MIB, stdin: bytes = b"") -> Ran:
        """Run a shell script as `Shell.execute` says, as the user of the agent, usually root.

        The agent runs several at once: what a cancelled call has left running goes on beside the next.

        QGA: guest-exec, guest-exec-status.
        """
        check_script(script, stdin)
        seconds = whole_seconds(limit)
        words = ["-c", _WRAPPER, "sh", str(seconds), str(most + 1), script]
        arguments = {"path": "/bin/sh", "arg": words, "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        start_limit = 2 * _GRACE_S + len(stdin) / _SLOWEST
        patience = seconds + start_limit
        async with self._lock:
            with self._witness.watch(script):
                try:
                    with anyio.fail_after(patience):
                        started = await self.ask("guest-exec", arguments, limit=start_limit)
                        ended = await self._wait(_number(started, "pid"))
                except TimeoutError as error:
                    message = f"the guest did not finish {shorten(script)!r} within {patience:g} s"
                    raise await self._witness.explain(message, script) from error
        signal = ended.get("signal")
        status = 128 + signal if isinstance(signal, int) else _number(ended, "exitcode")
        output = _decode(ended.get("out-data", ""))
        return Ran(status, output[:most], cut=len(output) > most)

    async def ask(
        self, command: str, arguments: Mapping[str, object] | None = None, *, limit: float = 30.0
    ) -> Mapping[str, object]:
        """Send the agent a command that returns an object; it may take `limit` seconds.

        Raises:
            GuestFailed: When the agent refuses it, does not answer, or returns something else.
        """
        try:
            answer = await self.agent.execute(command, arguments, limit=limit)
        except CommandFailed as error:
            raise GuestFailed(error.message, script=command) from error
        if not isinstance(answer, dict):
            raise GuestFailed(f"the agent returns no object for {command}", script=command)
        return answer

    async def set_clock(self) -> None:
        """Set the guest's clock as `Shell.set_clock` does, where guest-exec is forbidden, too.

        QGA: guest-set-time.
        """
        try:
            await self.ask("guest-set-time", {"time": time.time_ns()})
        except GuestFailed:  # it needs hwclock in the guest
            await super().set_clock()

    async def _wait(self, pid: int) -> Mapping[str, object]:
        for pause in chain(_POLLS_S, repeat(0.2)):
            try:
                status = await self.ask("guest-exec-status", {"pid": pid})
            except GuestFailed as error:
                raise GuestFailed(f"{error.message}: was the agent started again?", script="") from error
            if status.get("exited"):
                return status
            await anyio.sleep(pause)
        raise AssertionError  # the pauses do not end


@asynccontextmanager
async def open_agent(
    port: ByteStream | str | os.PathLike[str],
    *,
    limit: float = 120.0,
    vm: VM | None = None,
    port_id: str = "",
) -> AsyncIterator[AgentShell]:
    """Connect to a guest's agent, and wait until it answers.

    The agent is part of the guest: what it says proves nothing about the guest.

    Args:
        port: A stream, such as `LaunchedVM.port("org.qemu.guest_agent.0")`, or the path of its unix socket.
        limit: Seconds until it must answer, including the time in which the guest boots.
        vm: The machine, if it is known; errors then come sooner, and say more.
        port_id: Id of the port's device; if it is given with `vm`, the end of the agent is noticed at once.

    Raises:
        GuestFailed: When it does not answer.
        OSError: When there is no such socket.
    """
    stream = port if isinstance(port, ByteStream) else await anyio.connect_unix(os.fspath(port))
    try:
        agent, witness = Agent(stream), Witness(vm)
        with witness.watch(doing="the boot", boots=True):
            try:
                with anyio.fail_after(limit):
                    await agent.wait_ready()
            except TimeoutError as error:
                raise await witness.explain(f"the guest agent was not ready after {limit:g} s", "") from error
        yield AgentShell(agent, vm=vm, port_id=port_id)
    finally:
        if stream is not port:
            await stream.aclose()


def _number(answer: Mapping[str, object], name: str) -> int:
    if not isinstance(number := answer.get(name), int):
        raise GuestFailed(f"the agent's answer has no {name}", script="")
    return number


def _decode(data: object) -> bytes:
    try:
        return base64.b64decode(str(data), validate=True)
    except (binascii.Error, ValueError) as error:
        raise GuestFailed("the output that the agent returns is not base64", script="") from error
