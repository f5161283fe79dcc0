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
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

if TYPE_CHECKING:
    from qmpsnap.testing.shared.faces import Face
    from qmpsnap.testing.shared.options import QmpsnapOptions
    from qmpsnap.testing.shared.pool import InUse, Pool
    from qmpsnap.testing.shared.standing import Reset

_RESETS: Final = ("memory", "clone", "disks", "boot", "none")
_IN_USE: Final = pytest.StashKey["InUse"]()
_POOL: Final = pytest.StashKey["Pool"]()
_ENDS: Final = pytest.StashKey[ExitStack]()
_WORKERS: Final = pytest.StashKey[list[dict[str, Any]]]()


_OPTIONS: Final = {
    "qemu": ("QEMU", "a path, a name, or the directory of qemu-system-x86_64 (default: that on PATH)"),
    "accel": ("ACCEL", "accelerator: kvm or tcg (default: kvm where it works)"),
    "memory": ("MIB", "the guest's memory (default: the machine's own)"),
    "reset": ("WAY", f"how a machine is reset: {', '.join(_RESETS)} (default: the fastest that works)"),
    "boot-limit": ("SECONDS", "until the guest has to be ready, or a reset to be done (default: 120)"),
    "spare": ("YES|NO", "reset a second QEMU while a test uses the first (default: where it pays)"),
    "artifacts": ("DIR", "for the logs of failed tests (default: in pytest's temporary directory)"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each also for the ini file."""
    group = parser.getgroup("qmpsnap", "qmpsnap: guests in a known state")
    for name, (metavar, text) in _OPTIONS.items():
        group.addoption(f"--qmpsnap-{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"qmpsnap_{name.replace('-', '_')}", text, default="")
    group.addoption("--qmpsnap-keep", action="store_true", help="keep the overlays of failed tests, too")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and refuse options that mean nothing."""
    _checked_options(config)
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
def qmpsnap_pool(request: pytest.FixtureRequest, qmpsnap_options: QmpsnapOptions) -> Pool:
    """Own all machines of this session (under xdist, of this worker); they end after its last report."""
    from qmpsnap.testing.shared.pool import Pool  # noqa: PLC0415

    reset = cast("Reset | None", qmpsnap_options.reset or None)
    spare = {"yes": True, "no": False}.get(qmpsnap_options.spare)
    workers = getattr(request.config, "workerinput", {}).get("workercount", 1)  # of pytest-xdist
    tests = sum("qmpsnap_in_use" in getattr(item, "fixturenames", ()) for item in request.session.items)
    limit = qmpsnap_options.boot_limit
    pool = Pool(reset=reset, boot_limit=limit, spare=spare, workers=workers, tests=tests)
    request.config.stash[_POOL] = pool
    return request.config.stash.setdefault(_ENDS, ExitStack()).enter_context(pool)


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
    overrides = Overrides(
        cwd=str(request.config.invocation_params.dir),  # a test may have changed the current one
        qemu=options.qemu,
        accel=options.accel,
        memory_mib=options.memory_mib,
    )
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
        raise pytest.UsageError(
            f"{item.nodeid}: the marker takes reset= and nothing else, as in "
            "@pytest.mark.qmpsnap(reset='boot')"
        )
    return cast("Reset | None", _checked_reset(marker.kwargs.get("reset"), f"{item.nodeid}: reset"))


def _checked_reset(reset: object, where: str) -> object:
    if reset is not None and reset not in _RESETS:
        raise pytest.UsageError(f"{where} is {reset!r}: give one of {', '.join(_RESETS)}")
    return reset


def _options(config: pytest.Config) -> QmpsnapOptions:
    from qmpsnap.testing.shared.options import QmpsnapOptions  # noqa: PLC0415

    return QmpsnapOptions(**_checked_options(config))


def _checked_options(config: pytest.Config) -> dict[str, Any]:
    given = {name: _value(config, name) for name in _OPTIONS}
    if given["accel"] not in {"", "kvm", "tcg"}:
        raise pytest.UsageError(f"--qmpsnap-accel is {given['accel']!r}: give kvm or tcg")
    if given["spare"] not in {"", "yes", "no"}:
        raise pytest.UsageError(f"--qmpsnap-spare is {given['spare']!r}: give yes or no")
    _checked_reset(given["reset"] or None, "--qmpsnap-reset")
    if not re.fullmatch(r"([1-9]\d*)?", given["memory"], re.ASCII):
        raise pytest.UsageError(f"--qmpsnap-memory is {given['memory']!r}: give a number of MiB")
    try:
        limit = float(given["boot-limit"] or 120)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise pytest.UsageError(f"--qmpsnap-boot-limit is {given['boot-limit']!r}: give a number of seconds")
    return {
        "qemu": given["qemu"],
        "accel": given["accel"],
        "memory_mib": int(given["memory"] or 0),
        "reset": given["reset"],
        "boot_limit": limit,
        "spare": given["spare"],
        "keep": config.getoption("--qmpsnap-keep"),
        "artifacts": given["artifacts"],
    }


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
    if "qmpsnap.errors" not in sys.modules:  # nothing of qmpsnap is in use
        return (yield)
    from qmpsnap.testing.shared import reports  # noqa: PLC0415

    error = None if call.excinfo is None or item.config.getoption("fulltrace") else call.excinfo.value
    if error is not None:
        reports.end_traceback_at_test(error, plugin=__file__)
    report = yield
    if error is not None and call.when == "setup":
        reports.leave_out_fixture(error, report, plugin=__file__)
    if report.failed and _IN_USE in item.stash:
        options = _options(item.config)
        root = options.artifacts or str(item.config._tmp_path_factory.getbasetemp() / "qmpsnap")  # type: ignore[attr-defined]  # noqa: SLF001
        folder = item.config.invocation_params.dir / root / reports.folder_name(item.nodeid)
        text = reports.keep_failed(item.stash[_IN_USE], folder, overlays=options.keep)
        report.sections.append(("qmpsnap", text))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the machines, and send a worker's account to the process that prints the report."""
    session.config.stash.get(_ENDS, ExitStack()).close()
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
    from qmpsnap.testing.shared.reports import lines_of  # noqa: PLC0415

    terminalreporter.section("qmpsnap")
    for account in accounts:
        for line in lines_of(**account):
            terminalreporter.line(line)
