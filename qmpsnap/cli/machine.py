"""The machine of a command: a running QEMU, given by -s, or the images of a machine that is off, by -i."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import click

import qmpsnap
from qmpsnap.cli.app import SOCKET_VARIABLE, App
from qmpsnap.cli.output import to_stderr
from qmpsnap.errors import BadArgument, ConnectFailed, Unsupported
from qmpsnap.model.printable import printable
from qmpsnap.model.start import Start
from qmpsnap.vm import VM, Launcher

_SILENT_S = 5.0  # a launcher that says nothing for longer may seem to hang
_TCP = re.compile(r"tcp:.+:\d{1,5}")


def opened(
    app: App, *, looks: bool = False, with_files: bool = True, greeting_limit: float = 5.0
) -> AbstractAsyncContextManager[VM]:
    """Connect to the machine, or open its images, for the block; with the launcher that was given.

    Args:
        app: The options.
        looks: Whether only the headers of images are read.
        with_files: Whether the command needs the files of a running QEMU.
        greeting_limit: Seconds that a running QEMU may take to greet.

    Raises:
        click.UsageError: When no machine was given, or two were.
    """
    machine = _opened(app, looks=looks, with_files=with_files, greeting_limit=greeting_limit)
    if app.launcher is None:
        return machine
    return _launching(machine, _launcher(app.launcher))


def launcher_given(app: App, verb: str) -> Launcher:
    """Return the launcher of `--launcher`, which this verb needs.

    Raises:
        click.UsageError: When the option is missing, or its command is invalid.
    """
    if app.launcher is None:
        raise click.UsageError(
            f"{verb} starts other QEMUs: give --launcher COMMAND, a script that starts QEMU with the image "
            'of each disk NAME, which is $QMPSNAP_DISK_NAME, and with "$@" at its end'
        )
    return _launcher(app.launcher)


def _launcher(command: str) -> Launcher:
    try:
        return telling(qmpsnap.launcher_of(command), command)
    except BadArgument as error:
        reason = error.message.removeprefix(f"{error.parameter} is {error.value!r}: ")
        raise click.BadParameter(reason, param_hint="--launcher") from error


def telling(launcher: Launcher, command: str) -> Launcher:
    """Return a launcher that says on stderr what it waits for if no QEMU answers soon.

    If none is started, the error says what the command has to do.

    Args:
        launcher: Starts the QEMU.
        command: The command that it runs, for the message.
    """

    @asynccontextmanager
    async def started(start: Start) -> AsyncIterator[VM]:
        text = f"waiting for {printable(command)}: no QEMU has answered yet, {_SILENT_S:g} s after its start"
        timer = asyncio.get_running_loop().call_later(_SILENT_S, to_stderr, text)
        answered = False
        try:
            async with launcher(start) as vm:
                answered = True
                timer.cancel()
                yield vm
        except ConnectFailed as error:
            if not answered and not error.hint:
                error.hint = f'{command} has to start the same machine, with "$@" as its last arguments'
            raise
        finally:
            timer.cancel()

    return started


@asynccontextmanager
async def _launching(machine: AbstractAsyncContextManager[VM], launcher: Launcher) -> AsyncIterator[VM]:
    async with machine as vm:
        vm.launcher = launcher
        yield vm


def _opened(
    app: App, *, looks: bool, with_files: bool, greeting_limit: float
) -> AbstractAsyncContextManager[VM]:
    if app.images and app.socket and not app.socket_by_variable:
        raise click.UsageError("give -s for a running machine, or -i for the images of one that is off")
    if app.images:
        images, formats = images_of(app), _pairs("--format", app.formats)
        for disk, form in formats.items():
            if disk not in images:
                raise click.BadParameter(
                    f"{disk}={form} is of a disk without an image: give -i {disk}=IMAGE",
                    param_hint="--format",
                )
        return qmpsnap.offline(
            images,
            formats=formats,
            allow_dirs=app.allow_dirs,
            read_only=looks,
            daemon=app.storage_daemon,
            state_dir=app.state_dir or None,
            record=app.record,
        )
    for option, given in (("--format", app.formats), ("--allow-dir", app.allow_dirs)):
        if given:
            raise click.UsageError(f"{option} applies to images of a machine that is off: give -i DISK=IMAGE")
    if not app.socket:
        raise click.UsageError(
            "which machine? Give -s PATH, the path of its monitor, or -s NAME or -s PID (see qmpsnap ps), or "
            f"${SOCKET_VARIABLE}; if it is off, give its images with -i DISK=IMAGE. "
            "QEMU has a monitor when it is started with -qmp unix:PATH,server=on,wait=off"
        )
    if app.socket.startswith("tcp:") and not _TCP.fullmatch(app.socket):
        raise click.BadParameter(f"{app.socket!r} is not of the form tcp:HOST:PORT", param_hint="-s")
    return _connected(app, shared_fs=app.shared_fs if with_files else False, greeting_limit=greeting_limit)


@asynccontextmanager
async def _connected(app: App, *, shared_fs: bool | None, greeting_limit: float) -> AsyncIterator[VM]:
    async with qmpsnap.connect(
        await address_given(app.socket),
        shared_fs=shared_fs,
        state_dir=app.state_dir or None,
        greeting_limit=greeting_limit,
        record=app.record,
    ) as vm:
        yield vm


async def address_given(socket: str) -> str:
    """The address that -s means: a path that exists, or could be nothing else, or else a machine's."""
    is_path = "/" in socket or os.path.lexists(socket)
    return socket if is_path or socket.startswith(("tcp:", "@")) else await qmpsnap.address_of(socket)


def refuse_off(app: App, verb: str) -> None:
    """Refuse a verb that speaks to a running QEMU, where images of a machine that is off are given.

    Raises:
        Unsupported: When there are images.
    """
    if app.images:
        raise Unsupported(
            f"{verb} needs a running QEMU, and -i names the images of a machine that is off",
            feature=f"{verb} with the machine off",
            hint="start the machine, and give its monitor: -s PATH",
        )


def images_of(app: App) -> dict[str, str]:
    """The absolute path of each disk's image, as given by -i.

    Raises:
        click.UsageError: When an argument is not DISK=IMAGE, or two name the same disk.
    """
    pairs = _pairs("-i", app.images)
    return {disk: str(Path(file).absolute()) for disk, file in pairs.items()}


def words(app: App) -> list[str]:
    """The options that select this machine, for a further command."""
    if not app.images:
        return ["-s", app.socket]
    options = [word for disk, file in images_of(app).items() for word in ("-i", f"{disk}={file}")]
    options += [word for pair in app.formats for word in ("--format", pair)]
    return options + [
        word for place in app.allow_dirs for word in ("--allow-dir", str(Path(place).absolute()))
    ]


def _pairs(option: str, given: Sequence[str]) -> Mapping[str, str]:
    pairs: dict[str, str] = {}
    for argument in given:
        name, equals, value = argument.partition("=")
        if not name or not equals or not value:
            what = "DISK=IMAGE" if option == "-i" else "DISK=raw or DISK=qcow2"
            raise click.BadParameter(f"{argument!r} is not {what}", param_hint=option)
        if name in pairs:
            raise click.BadParameter(f"disk {name!r} is given twice", param_hint=option)
        pairs[name] = value
    return pairs
