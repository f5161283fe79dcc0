"""The pytest plugin: each test gets a guest in a known state, without booting it.

Heavy modules are imported only when a test uses a fixture. See docs/howto/pytest.md.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

if TYPE_CHECKING:
    from qmpsnap.testing.shared.faces import Face
    from qmpsnap.testing.shared.pool import InUse, Pool
    from qmpsnap.testing.shared.standing import Reset

_RESETS: Final = ("memory", "clone", "disks", "boot", "none")
_IN_USE: Final = pytest.StashKey["InUse"]()
_POOL: Final = pytest.StashKey["Pool"]()
_WORKERS: Final = pytest.StashKey[list[dict[str, Any]]]()


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


_OPTIONS: Final = {
    "qemu": "QEMU: a path, or the directory of qemu-system-x86_64",
    "accel": "accelerator: kvm or tcg (default: kvm where it works)",
    "memory": "MiB of the guest's memory",
    "reset": f"how a machine is reset: {', '.join(_RESETS)} (default: the fastest that works)",
    "boot-limit": "seconds that a guest may take until it is ready (default: 120)",
    "spare": "yes or no: reset a second QEMU while a test uses the first (default: where it pays)",
    "artifacts": "directory for the logs of failed tests",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each also for the ini file."""
    group = parser.getgroup("qmpsnap", "qmpsnap: guests in a known state")
    for name, text in _OPTIONS.items():
        group.addoption(f"--qmpsnap-{name}", default=None, help=text)
        parser.addini(f"qmpsnap_{name.replace('-', '_')}", text, default="")
    group.addoption("--qmpsnap-keep", action="store_true", help="keep the overlays of failed tests, too")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and refuse options that mean nothing."""
    _options(config)
    config.addinivalue_line(
        "markers",
        "qmpsnap(reset='memory'|'clone'|'disks'|'boot'|'none'): how the machine of vm and guest is reset "
        "before the test; default: the fastest way that works for the machine",
    )


# -- fixtures that a test-suite overrides ------------------------------------------------------------------


@pytest.fixture(scope="session")
def qmpsnap_options(pytestconfig: pytest.Config) -> QmpsnapOptions:
    """The plugin's options: qemu, accel, memory_mib, reset, boot_limit, keep, artifacts."""
    return _options(pytestconfig)


@pytest.fixture(scope="session")
def qmpsnap_disks() -> Mapping[str, str]:
    """The disks of the default machine, a command line or a launcher: {"vda": "base.qcow2"}. Override it.

    The images are never written to: each QEMU has overlays on them. Each value is a path that ends in .qcow2,
    or (path, format).
    """
    return {}


@pytest.fixture(scope="session")
def qmpsnap_machine() -> object:
    """The machine that tests share: a qmpsnap.Machine, a command line, or a launcher. Override it.

    Default: qmpsnap's own guest, with the disks of qmpsnap_disks.
    """
    return None


@pytest.fixture(scope="session")
def qmpsnap_ready() -> str | Callable[[Any], Awaitable[object]] | None:
    """Text on the console of a guest that is ready, or a coroutine function that waits for it. Override it.

    Default: when qmpsnap's own guest answers; at once, if the machine runs another guest.
    """
    return None


# -- fixtures that tests use -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def qmpsnap_pool(request: pytest.FixtureRequest, qmpsnap_options: QmpsnapOptions) -> Iterator[Pool]:
    """Own all machines of this session (under xdist, of this worker); they end with it."""
    from qmpsnap.testing.shared.pool import Pool  # noqa: PLC0415

    reset = cast("Reset | None", qmpsnap_options.reset or None)
    spare = {"yes": True, "no": False}.get(qmpsnap_options.spare)
    workers = getattr(request.config, "workerinput", {}).get("workercount", 1)  # of pytest-xdist
    tests = sum("qmpsnap_in_use" in getattr(item, "fixturenames", ()) for item in request.session.items)
    limit = qmpsnap_options.boot_limit
    with Pool(reset=reset, boot_limit=limit, spare=spare, workers=workers, tests=tests) as pool:
        request.config.stash[_POOL] = pool
        yield pool


@pytest.fixture
def qmpsnap_in_use(
    request: pytest.FixtureRequest,
    qmpsnap_pool: Pool,
    qmpsnap_options: QmpsnapOptions,
    qmpsnap_machine: object,
    qmpsnap_disks: Mapping[str, object],
    qmpsnap_ready: object,
) -> Iterator[InUse]:
    """Put the machine in its first state, and lend it to the test."""
    from qmpsnap.testing.shared.source import Overrides, source_of  # noqa: PLC0415

    options = qmpsnap_options
    overrides = Overrides(qemu=options.qemu, accel=options.accel, memory_mib=options.memory_mib)
    source = source_of(qmpsnap_machine, qmpsnap_disks, qmpsnap_ready, overrides=overrides)
    key = qmpsnap_machine, qmpsnap_disks, qmpsnap_ready
    in_use = qmpsnap_pool.begin(key, source, _reset_of(request.node), test=request.node.nodeid)
    request.node.stash[_IN_USE] = in_use
    yield in_use
    in_use.close()


@pytest.fixture
def vm(qmpsnap_in_use: InUse) -> Face[Any]:
    """The machine as a qmpsnap.VM, in its first state; in a plain test its methods block."""
    return qmpsnap_in_use.vm


@pytest.fixture
def guest(qmpsnap_in_use: InUse) -> Face[Any]:
    """Runs commands in the guest: `await guest.run("uname -a")`; in a plain test without await."""
    return qmpsnap_in_use.guest


@pytest.fixture
def qmpsnap_socket(qmpsnap_in_use: InUse) -> str:
    """Path of a QMP socket of the machine for another client, such as the command line."""
    return qmpsnap_in_use.monitor()


@pytest.fixture
def qmpsnap_directory(qmpsnap_in_use: InUse) -> Path:
    """Directory of the machine's QEMU: console.log, qemu.log, images, and a socket for each of its ports."""
    return qmpsnap_in_use.directory


@pytest.fixture
def qmpsnap_replay(request: pytest.FixtureRequest) -> Iterator[Callable[[str | os.PathLike[str]], str]]:
    """Serve the record of a session: `qmpsnap_replay("session.jsonl")` returns the path of a QMP socket.

    A relative path is that of a file beside the test. If a command was refused, the test fails at its end.
    """
    from qmpsnap.testing.shared.replays import replays  # noqa: PLC0415

    with replays(request.path.parent) as served:
        yield served.serve
        refused = served.refused
    if refused:
        pytest.fail("\n".join(["the session was another than the recorded one", *refused]), pytrace=False)


def _reset_of(item: pytest.Item) -> Reset | None:
    marker = item.get_closest_marker("qmpsnap")
    if marker is None:
        return None
    if marker.args or marker.kwargs.keys() - {"reset"}:
        raise pytest.UsageError(f"{item.nodeid}: the marker takes reset= and nothing else")
    return cast("Reset | None", _checked_reset(marker.kwargs.get("reset"), f"{item.nodeid}: reset"))


def _checked_reset(reset: object, where: str) -> object:
    if reset is not None and reset not in _RESETS:
        raise pytest.UsageError(f"{where} is {reset!r}: give one of {', '.join(_RESETS)}")
    return reset


def _options(config: pytest.Config) -> QmpsnapOptions:
    given = {name: _value(config, name) for name in _OPTIONS}
    if given["accel"] not in {"", "kvm", "tcg"}:
        raise pytest.UsageError(f"--qmpsnap-accel is {given['accel']!r}: give kvm or tcg")
    if given["spare"] not in {"", "yes", "no"}:
        raise pytest.UsageError(f"--qmpsnap-spare is {given['spare']!r}: give yes or no")
    _checked_reset(given["reset"] or None, "--qmpsnap-reset")
    if not re.fullmatch(r"\d*", given["memory"], re.ASCII):
        raise pytest.UsageError(f"--qmpsnap-memory is {given['memory']!r}: give a number of MiB")
    try:
        limit = float(given["boot-limit"] or 120)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise pytest.UsageError(f"--qmpsnap-boot-limit is {given['boot-limit']!r}: give a number of seconds")
    return QmpsnapOptions(
        qemu=given["qemu"],
        accel=given["accel"],
        memory_mib=int(given["memory"] or 0),
        reset=given["reset"],
        boot_limit=limit,
        spare=given["spare"],
        keep=config.getoption("--qmpsnap-keep"),
        artifacts=given["artifacts"],
    )


def _value(config: pytest.Config, name: str) -> str:
    return str(config.getoption(f"--qmpsnap-{name}") or config.getini(f"qmpsnap_{name.replace('-', '_')}"))


# -- coroutines get a real VM in their own event loop ------------------------------------------------------


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Give a coroutine test, whichever plugin runs it, a connection that is opened in its own loop."""
    function = getattr(item, "obj", None)
    if _IN_USE not in item.stash or not inspect.iscoroutinefunction(function):
        return (yield)
    test = cast("pytest.Function", item)
    test.obj = _with_real(function)
    try:
        return (yield)
    finally:
        test.obj = function


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Give coroutine fixtures that use vm or guest a connection in the same way."""
    fixture = cast("Any", fixturedef)
    function = fixture.func
    if not {"vm", "guest"} & set(fixturedef.argnames) or not (
        inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
    ):
        return (yield)
    owner = getattr(function, "__self__", None)
    bound = function
    if owner is not None and isinstance(request.instance, type(owner)):
        bound = function.__func__.__get__(request.instance)
    fixture.func = _with_real(bound)
    try:
        return (yield)
    finally:
        fixture.func = function


def _with_real(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generator(**fixtures: object) -> AsyncIterator[object]:
            from qmpsnap.testing.shared.faces import real  # noqa: PLC0415

            async with real(fixtures) as arguments:
                async for value in function(**arguments):
                    yield value

        return generator

    @functools.wraps(function)
    async def coroutine(**fixtures: object) -> object:
        from qmpsnap.testing.shared.faces import real  # noqa: PLC0415

        async with real(fixtures) as arguments:
            return await function(**arguments)

    return coroutine


# -- reports -----------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the logs and messages of a failed test, and name the folder in its report."""
    if call.excinfo is not None and not item.config.getoption("fulltrace"):
        _end_traceback_at_test(call.excinfo.value)
    report = yield
    if call.excinfo is not None and call.when == "setup" and not item.config.getoption("fulltrace"):
        _leave_out_fixture(call.excinfo.value, report)
    if report.failed and report.when != "teardown" and _IN_USE in item.stash:
        options = _options(item.config)
        root = options.artifacts or str(item.config._tmp_path_factory.getbasetemp() / "qmpsnap")  # type: ignore[attr-defined]  # noqa: SLF001
        folder = Path(root).absolute() / re.sub(r"[^A-Za-z0-9_.-]+", "-", item.nodeid)[-100:]
        try:
            item.stash[_IN_USE].keep(folder, overlays=options.keep)
            names = ", ".join(sorted(path.name for path in folder.iterdir()))
            text = f"{folder}\nhas {names}"
        except Exception as error:  # noqa: BLE001 - the test's own failure must stay visible
            text = f"nothing could be kept: {error}"
        report.sections.append(("qmpsnap", text))
    return report


def _end_traceback_at_test(error: BaseException) -> None:
    """Remove the frames below the test from an error of qmpsnap, whose message says it all.

    They would hide the line of the test. With pytest's --full-trace they stay.
    """
    errors = sys.modules.get("qmpsnap.errors")
    if errors is None or not isinstance(error, errors.QmpsnapError):
        return
    package = str(Path(__file__).parent)
    entry, above = error.__traceback__, None
    while entry is not None:
        file = entry.tb_frame.f_code.co_filename
        if above is not None and file != __file__ and file.startswith(package):
            above.tb_next = None
            error.__cause__, error.__suppress_context__ = None, True
            return
        above, entry = entry, entry.tb_next


def _leave_out_fixture(error: BaseException, report: pytest.TestReport) -> None:
    """Leave only the message of an error that a fixture of this file has raised; its source adds nothing."""
    frames = [entry.f_code.co_filename for entry, _ in traceback.walk_tb(error.__traceback__)]
    if frames[-1:] != [__file__]:
        return
    for shown, *_ in getattr(report.longrepr, "chain", ()):
        entry = shown.reprentries[-1]
        if lines := [line for line in entry.lines if line.startswith("E ")]:
            entry.lines, entry.reprfuncargs = lines, None
            shown.reprentries = [entry]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send a worker's account to the process that prints the report."""
    if (pool := session.config.stash.get(_POOL, None)) is not None:
        accounts = [asdict(account) for account in pool.accounts]
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["qmpsnap"] = accounts
        else:
            session.config.stash[_WORKERS] = accounts


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401 - a class of xdist, which may not be installed
    """Collect a worker's account."""
    accounts = getattr(node, "workeroutput", {}).get("qmpsnap", [])
    named = [{**account, "worker": node.gateway.id} for account in accounts]
    node.config.stash.setdefault(_WORKERS, []).extend(named)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report how the machines were reset, and why any was booted again."""
    accounts = config.stash.get(_WORKERS, [])
    if not accounts:
        return
    terminalreporter.section("qmpsnap")
    for account in accounts:
        for line in _report_lines(**account):
            terminalreporter.line(line)


def _report_lines(
    *, reset: str, boots: list[float], resets: list[float], again: list[str], spare: str, worker: str = ""
) -> list[str]:
    typical = f", {sorted(resets)[len(resets) // 2]:.2f} s each" if resets else ""
    how = reset or ("as the tests' markers say" if boots else "not chosen, because no machine became ready")
    lines = [
        f"reset: {how}; {len(boots)} boot(s), {len(resets)} reset(s){typical}",
        *([spare] if spare else []),
        *(f"booted anew after {line}" for line in again),
    ]
    return [f"[{worker}] {line}" for line in lines] if worker else lines
