"""What a test has set in QEMU besides its disks and its guest's memory, which no revert puts back."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, cast

from qmpsnap.errors import CommandFailed
from qmpsnap.vm import VM

Answer = list[Mapping[str, object]]

_LIMITS: Final = re.compile(r"(bps|iops)(_\w+)?")
_NETWORK: Final = re.compile(r"^(?: \\ )?(.+?): index=0,type=", re.MULTILINE)
# Protocol, descriptor, source, destination; the descriptor differs from QEMU to QEMU.
_FORWARD: Final = re.compile(r"(\w+)\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)")

# QEMU shows nothing of what these do, and no revert undoes it.
_HIDDEN: Final = frozenset({"set-action", "watchdog-set-action", "qom-set", "chardev-change"})
_HIDDEN_MONITOR: Final = frozenset({"watchdog_action", "boot_set", "gdbserver", "qom-set", "chardev-change"})
_MAY_BE_HIDDEN: Final = re.compile("|".join([*_HIDDEN, *_HIDDEN_MONITOR]).encode())


async def read_settings(vm: VM) -> dict[str, tuple[str, ...]]:
    """Return the settings that must be the same before each test, by kind.

    QAPI: query-block (block-core.json), query-migrate-parameters and -capabilities (migration.json).
    HMP: info network, info usernet; QMP has no command for these.
    """
    blocks = cast("Answer", await vm.execute("query-block"))
    parameters = cast("Mapping[str, object]", await vm.execute("query-migrate-parameters"))
    capabilities = cast("Answer", await vm.execute("query-migrate-capabilities"))
    return {
        "I/O limits": tuple(limits_of(blocks)),
        "migration parameters": tuple(sorted(f"{name}={value}" for name, value in parameters.items())),
        "migration capabilities": tuple(
            sorted(str(each["capability"]) for each in capabilities if each["state"])
        ),
        "networks": tuple(sorted(networks_of(await _ask(vm, "info network")))),
        "forwarded ports": tuple(sorted(forwards_of(await _ask(vm, "info usernet")))),
    }


async def put_back(vm: VM, *, exports: bool) -> None:
    """Put back what is always the same: each network card has its cable, and no NBD server runs.

    Args:
        vm: The machine.
        exports: Whether it had exports before the first test, and so the server.

    QAPI: set_link (net.json), nbd-server-stop (block-export.json).
    """
    for name in networks_of(await _ask(vm, "info network")):
        with contextlib.suppress(CommandFailed):
            await vm.execute("set_link", {"name": name, "up": True})
    if not exports:
        with contextlib.suppress(CommandFailed):  # there is none
            await vm.execute("nbd-server-stop")


async def _ask(vm: VM, line: str) -> str:
    """Return the answer of the human monitor, "" if this QEMU has none."""
    with contextlib.suppress(CommandFailed):
        return str(await vm.execute("human-monitor-command", {"command-line": line}))
    return ""


def limits_of(blocks: Answer) -> Iterator[str]:
    """Yield the I/O limits in the answer of query-block, a text for each disk that has any."""
    for block in blocks:
        inserted = cast("Mapping[str, object]", block.get("inserted") or {})
        limits = {name: value for name, value in inserted.items() if value and _LIMITS.fullmatch(name)}
        if limits:
            device = block.get("qdev") or block["device"]
            yield f"{device}: {', '.join(f'{name}={value}' for name, value in sorted(limits.items()))}"


def networks_of(answer: str) -> list[str]:
    """Return the name of each card and each backend in the answer of `info network`."""
    return _NETWORK.findall(answer)


def forwards_of(answer: str) -> list[str]:
    """Return the ports of the host in the answer of `info usernet`: `TCP 127.0.0.1:2222 10.0.2.15:22`."""
    return ["{} {}:{} {}:{}".format(*each) for each in _FORWARD.findall(answer.replace("\r", ""))]


def hidden_of(directory: Path) -> str:
    """Return the first command of a test, as its messages in the directory say, that nothing shows or undoes.

    Returns:
        The command's name; "" for none.
    """
    return next((name for file in sorted(directory.glob("qmp-*.jsonl")) for name in _hidden(file)), "")


def _hidden(messages: Path) -> Iterable[str]:
    lines: list[bytes] = []
    with contextlib.suppress(FileNotFoundError):
        lines = [line for line in messages.read_bytes().splitlines() if _MAY_BE_HIDDEN.search(line)]
    for line in lines:
        with contextlib.suppress(ValueError):  # the record may be cut short
            entry = json.loads(line)
            command, arguments = entry["message"].get("execute"), entry["message"].get("arguments") or {}
            if entry["from"] != "client":
                continue
            if command == "human-monitor-command":
                yield from _HIDDEN_MONITOR & set(str(arguments.get("command-line", "")).split()[:1])
            elif command in _HIDDEN and arguments.get("property") != "drive":  # which a pivot sets
                yield command
