"""QEMU as a child: started from a description or a command line, with its monitor, console and ports."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from qmpsnap.errors import Unsupported
from qmpsnap.launched import LaunchedVM
from qmpsnap.model.arguments import Word, check, path_text, refuse
from qmpsnap.model.command_line.rewrite import for_start
from qmpsnap.model.machine_description import Machine, words
from qmpsnap.model.start import Start
from qmpsnap.run import session as sessions
from qmpsnap.run.accelerator import accelerator
from qmpsnap.run.channel import Console, Pair, Port, fits_address, listener, pairs
from qmpsnap.run.event_loop import asyncio_loop
from qmpsnap.run.file_limit import PROGRAM, require_room
from qmpsnap.run.images import Images
from qmpsnap.run.live import LiveTarget
from qmpsnap.run.paths import absolute
from qmpsnap.run.process import start_qemu
from qmpsnap.run.session import recording
from qmpsnap.vm import VM, Launcher

_CONSOLE: Final = "the console"  # no port's name: it has a space


@asynccontextmanager
async def launch(
    machine: Machine | Sequence[str | os.PathLike[str]],
    *,
    start: Start | None = None,
    qmp: str | os.PathLike[str] | None = None,
    console_log: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    log: str | os.PathLike[str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    name: str = "",
    record: str | os.PathLike[str] | None = None,
) -> AsyncIterator[LaunchedVM]:
    """Start QEMU as a child process, and connect to it; it ends with the block, and all that it started, too.

    QEMU also ends when this process is killed. Its monitor, its console and its ports are socket pairs, which
    no other process can use; `qmp` gives it a second monitor for other clients.

    Args:
        machine: A description, or the program and its arguments; `launch` adds its own monitor.
        start: How this QEMU has to differ from another one of the same machine, so that both can run at once.
            Sockets and logs that only one process can have go into `start.directory` (`qmp`, `console.log`,
            `qemu.log`, unless you name others), or are left out. None: it does not differ.
        qmp: Path of a unix socket for other clients, at most 107 bytes long; it is created, mode 0600, and
            removed at the end.
        console_log: File to which the console's output is appended.
        cwd: Its working directory; None: ours.
        env: Its whole environment; None: ours. `{**os.environ, "NAME": "value"}` adds to ours.
        log: File to which QEMU's output is appended; with or without it, the error has the last of that
            output if QEMU dies.
        state_dir: Directory of records; None: beside each base image.
        name: What the machine is called in logs and errors; "": "qemu".
        record: File to create, to which every message of the session is written, with secrets masked; None:
            no file.

    Raises:
        BadArgument: When an argument is invalid.
        TargetExists, InvalidTarget: When the record or the socket `qmp` exists or cannot be created, a log
            cannot be opened, or this process has come to its limit of open files.
        Unsupported: When the machine cannot be started as `start` says; the message names the argument. Also
            when the running event loop is not asyncio's.
        ConnectFailed: When QEMU ends before it is ready; the message says how, with its last output. So does
            every later LinkLost.
    """
    asyncio_loop()
    check("name", name, str)
    if start is not None and not isinstance(start, Start):
        refuse("start", start, "give a qmpsnap.Start")
    machine_name = name or "qemu"
    state = "" if state_dir is None else absolute("state_dir", state_dir)
    places = _places(start, qmp=qmp, console_log=console_log, log=log)
    description = _describe(machine)
    if console_log is not None and _CONSOLE not in _channels(description):
        refuse(
            "console_log",
            console_log,
            "it has no console here: describe it with qmpsnap.Machine(console=True)",
        )
    directory, environment = None if cwd is None else path_text("cwd", cwd), _environment(env)

    def launch_another(start: Start) -> AbstractAsyncContextManager[VM]:
        return launch(
            description, start=start, cwd=directory, env=environment, state_dir=state_dir, name=machine_name
        )

    channels = _channels(description)
    require_room(PROGRAM)
    async with AsyncExitStack() as stack:
        recorder = stack.enter_context(recording(None if record is None else absolute("record", record)))
        ends = stack.enter_context(pairs(channels))
        listening = stack.enter_context(listener(places.qmp))
        console = await stack.enter_async_context(_console(ends, places.console_log))
        argv = _argv(description, start, ends)
        inherited = [pair.theirs for pair in ends.values()]
        if listening is not None:
            argv += ["-chardev", f"socket,id=qmpsnap-qmp,fd={listening.fileno()},server=on,wait=off"]
            argv += ["-qmp", "chardev:qmpsnap-qmp"]
            inherited.append(listening)
        async with start_qemu(
            argv,
            cwd=directory,
            env=environment,
            log=Path(places.log) if places.log else None,
            name=machine_name,
            inherited=inherited,
        ) as process:
            link = partial(
                sessions.connect,
                process.socket,
                pid=process.qemu_pid,
                name=machine_name,
                last_words=process.last_words,
                recorder=recorder,
            )
            target = LiveTarget(link, again=False, shared_fs=None, images=Images(), name=machine_name)
            async with target:
                yield LaunchedVM(
                    target,
                    process,
                    argv=argv,
                    console=console,
                    ports={name: Port(pair.ours) for name, pair in ends.items() if name != _CONSOLE},
                    qmp=places.qmp,
                    state_dir=state,
                    launcher=launch_another,
                )


def launcher_of(
    command: str | Sequence[str | os.PathLike[str]],
    *,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
    name: str = "",
) -> Launcher:
    """A launcher that runs a command, such as a script, which should start QEMU by `exec`.

    The command is called with further arguments, which it has to pass on to QEMU ("$@" in a shell), and with
    these variables: QMPSNAP_DISK_NAME, the image of the disk NAME (each character of NAME that is not an
    ASCII letter or digit becomes "_"); and QMPSNAP_DIRECTORY, a directory for its sockets and logs, "" for
    none.

    Args:
        command: The command with its first arguments; text is split as a shell does it.
        cwd: Its working directory; None: ours.
        env: Its environment, to which those variables are added; None: ours.
        state_dir: Directory of records; None: beside each base image.
        name: What its machines are called in logs and errors; "": "qemu".

    Raises:
        BadArgument: When an argument is invalid; when there is no such command, or it cannot be executed.
        Unsupported: By the launcher, when two disks have the same variable.
    """
    argv = list(words("command", _shell_words(command)))
    if not argv or not argv[0]:
        refuse("command", command, "give a command")
    check("name", name, str)
    directory, environment = None if cwd is None else path_text("cwd", cwd), _environment(env)
    _refuse_missing(command, argv[0], directory, environment)
    state = None if state_dir is None else absolute("state_dir", state_dir)

    @asynccontextmanager
    async def launcher(start: Start) -> AsyncIterator[VM]:
        places = _places(start, qmp=None, console_log=None, log=None)
        variables = {**(os.environ if environment is None else environment), **_variables(start)}
        async with launch(
            [*argv, *start.arguments],
            qmp=places.qmp or None,
            log=places.log or None,
            cwd=directory,
            env=variables,
            state_dir=state,
            name=name,
        ) as vm:
            vm.launcher = launcher
            yield vm

    return launcher


def _shell_words(command: str | Sequence[str | os.PathLike[str]]) -> Sequence[str | os.PathLike[str]]:
    if not isinstance(command, str):
        return command
    try:
        return shlex.split(command)
    except ValueError as error:
        refuse("command", command, f"a shell could not read it: {error}")


def _refuse_missing(
    command: object, program: str, cwd: str | None, environment: Mapping[str, str] | None
) -> None:
    """Refuse a program that cannot be started, while nothing is changed yet."""
    path = program if "/" not in program else os.path.join(cwd or "", program)  # noqa: PTH118
    search = os.pathsep.join(os.get_exec_path(environment))
    if shutil.which(path, path=search) is None:
        refuse("command", command, f"{program!r} does not exist, or cannot be executed")


def _variables(start: Start) -> dict[str, str]:
    variables = {"QMPSNAP_DIRECTORY": start.directory}
    for disk, image in start.disks.items():
        variable = "QMPSNAP_DISK_" + re.sub(r"[^A-Za-z0-9]", "_", disk)
        if variable in variables:
            raise Unsupported(
                f"the disk {disk!r} and another one would both be in {variable}",
                feature=disk,
                hint="give one of them another id, or give launcher=",
            )
        variables[variable] = image
    return variables


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """The files and sockets of a QEMU; "" for none."""

    qmp: str
    console_log: str
    log: str


def _places(
    start: Start | None,
    *,
    qmp: str | os.PathLike[str] | None,
    console_log: str | os.PathLike[str] | None,
    log: str | os.PathLike[str] | None,
) -> _Places:
    place = start.directory if start is not None else ""
    of_its_own = {name: f"{place}/{name}" if place else "" for name in ("qmp", "console.log", "qemu.log")}
    if not fits_address(of_its_own["qmp"]):
        of_its_own["qmp"] = ""
    return _Places(
        qmp=of_its_own["qmp"] if qmp is None else absolute("qmp", qmp),
        console_log=of_its_own["console.log"]
        if console_log is None
        else absolute("console_log", console_log),
        log=of_its_own["qemu.log"] if log is None else path_text("log", log),
    )


def _describe(machine: object) -> Machine | list[str]:
    """Return the description with absolute paths and an accelerator, or the words of the command line."""
    if not isinstance(machine, Machine):
        argv = list(words("machine", machine))  # type: ignore[arg-type]  # which it checks
        if not argv or not argv[0]:
            refuse("machine", machine, "give a Machine, or the program and its arguments")
        return argv
    disks = tuple(replace(disk, file=absolute("file", disk.file)) for disk in machine.disks)
    return replace(machine, disks=disks, accel=machine.accel or accelerator())


def _channels(machine: Machine | list[str]) -> list[str]:
    if not isinstance(machine, Machine):
        return []
    return [*([_CONSOLE] if machine.console else []), *machine.ports]


def _argv(machine: Machine | list[str], start: Start | None, ends: Mapping[str, Pair]) -> list[str]:
    if isinstance(machine, Machine):
        leading = {name: pair.chardev for name, pair in ends.items()}
        return machine.argv(start, console=leading.pop(_CONSOLE, "null"), ports=leading)
    return list(machine) if start is None else for_start(machine, start)


@asynccontextmanager
async def _console(ends: Mapping[str, Pair], log: str) -> AsyncIterator[Console | None]:
    if _CONSOLE not in ends:
        yield None
        return
    async with Console(ends[_CONSOLE].ours, log) as console:
        yield console


def _environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    if env is None:
        return None
    check("env", env, Mapping[Word, Word])
    for name in env:
        if not name or "=" in name:
            refuse("env", name, "no environment variable can have that name")
    return dict(env)
