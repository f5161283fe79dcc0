"""No error of a test ends the loop of the plugin, and what a test leaves open there is ended."""

from __future__ import annotations

import signal
import threading
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from qmpsnap.testing.shared.calls import Calls, Inside
from qmpsnap.testing.shared.faces import Face
from tests.each import each
from tests.testing.forked import raised_in_fork


@pytest.fixture(scope="module")
def portal():
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def calls(portal):
    yield Calls(portal)
    assert portal.call(list) == []  # the loop still runs


class Manager:
    """A manager that notes what it does; `fails` names the part that skips the test."""

    def __init__(self, *, fails="", grouped=False):
        self.log: list[object] = []
        self.fails = fails
        self.grouped = grouped

    @asynccontextmanager
    async def __call__(self):
        if self.fails == "enter":
            pytest.skip("at the beginning")
        self.log.append("in")
        try:
            if self.grouped:
                async with anyio.create_task_group():
                    yield "value"
            else:
                yield "value"
        except BaseException as error:
            self.log.append(type(error).__name__)
            raise
        finally:
            self.log.append("out")
        if self.fails == "leave":
            pytest.skip("at the end")


def entered(calls, manager):
    return Inside(calls, manager(), lambda value: value)


def test_call_raises_what_is_no_exception_and_the_loop_goes_on(calls):
    with pytest.raises(pytest.skip.Exception, match="from inside"):
        calls.call(pytest.skip, "from inside")


@each("error", [KeyboardInterrupt(), pytest.skip.Exception("why"), ValueError("why")])
@each("grouped", [False, True])
def test_block_ends_with_its_own_error_and_the_loop_goes_on(calls, error, grouped):
    manager = Manager(grouped=grouped)
    if grouped and isinstance(error, Exception):
        expected: type[BaseException] = ExceptionGroup
    else:
        expected = type(error)
    with pytest.raises(expected), entered(calls, manager):
        raise error
    assert manager.log[::2] == ["in", "out"]
    assert calls.entered == []


@each(("part", "text"), [("enter", "at the beginning"), ("leave", "at the end")])
def test_manager_that_skips_the_test_does_so_and_the_loop_goes_on(calls, part, text):
    with pytest.raises(pytest.skip.Exception, match=text), entered(calls, Manager(fails=part)):
        pass
    assert calls.entered == []


def test_leave_all_leaves_what_is_still_entered_the_last_first_and_once(calls):
    log: list[str] = []

    @asynccontextmanager
    async def manager(name):
        yield
        log.append(name)

    inside = [Inside(calls, manager(name), lambda value: value) for name in ("a", "b", "c")]
    for each_of_them in inside:
        each_of_them.__enter__()
    inside[1].__exit__(None, None, None)
    calls.leave_all()
    calls.leave_all()
    for each_of_them in inside:
        each_of_them.__exit__(None, None, None)
    assert log == ["b", "c", "a"]


def test_leave_all_leaves_all_when_one_of_them_raises(calls):
    first, second = Manager(), Manager(fails="leave")
    entered(calls, first).__enter__()
    entered(calls, second).__enter__()
    with pytest.raises(pytest.skip.Exception, match="at the end"):
        calls.leave_all()
    assert (first.log, calls.entered) == (["in", "out"], [])


def test_manager_is_cancelled_when_the_wait_for_it_is_interrupted(calls):
    begun, ended = threading.Event(), threading.Event()

    @asynccontextmanager
    async def slow():
        try:
            begun.set()
            await anyio.sleep_forever()
            yield
        finally:
            ended.set()

    def interrupt(*_):
        raise TimeoutError("alarm")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(TimeoutError, match="alarm"), Inside(calls, slow(), lambda value: value):
            pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert begun.is_set()
    assert ended.wait(60)
    assert calls.entered == []


def test_threads_of_a_test_share_one_connection(portal):
    opened: list[object] = []

    class Thing:
        async def double(self, number):
            return 2 * number

    @asynccontextmanager
    async def opener():
        await anyio.sleep(0.05)
        opened.append(Thing())
        yield opened[-1]

    face = Face[Thing](portal, opener)
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(face.double(3))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    face.close()
    assert (results, len(opened)) == ([6, 6, 6, 6], 1)


def test_process_that_a_test_has_forked_is_refused_and_does_not_hang(calls):
    manager = Manager()
    with entered(calls, manager):
        for use in (lambda: calls.call(list), calls.leave_all, entered(calls, manager).__enter__):
            assert raised_in_fork(use) == "Unsupported"
        assert manager.log == ["in"]
    assert manager.log == ["in", "out"]
