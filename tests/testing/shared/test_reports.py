"""What the plugin adds to a report."""

from __future__ import annotations

from dataclasses import asdict
from traceback import walk_tb

import anyio.to_thread
from anyio.from_thread import BlockingPortal

from qmpsnap.testing.shared.account import Account
from qmpsnap.testing.shared.calls import Calls
from qmpsnap.testing.shared.faces import Blocking
from qmpsnap.testing.shared.reports import end_traceback_at_test, folder_name, lines_of
from tests.each import each


@each(
    ("account", "lines"),
    [
        (Account(), ["reset: not chosen, because no machine became ready; 0 boot(s), 0 reset(s)"]),
        (Account(boots=[2.0]), ["reset: as the tests' markers say; 1 boot(s), 0 reset(s)"]),
        (
            Account(reset="memory, as chosen", boots=[3.0, 2.5], resets=[0.3, 0.1, 0.2], again=["a: b"]),
            ["reset: memory, as chosen; 2 boot(s), 3 reset(s), 0.20 s each", "booted anew after a: b"],
        ),
        (
            Account(reset="memory, as chosen", boots=[2.0], spare="one QEMU again: no port"),
            ["reset: memory, as chosen; 1 boot(s), 0 reset(s)", "one QEMU again: no port"],
        ),
    ],
)
def test_report_says_what_was_done(account, lines):
    assert lines_of(**asdict(account)) == lines


async def test_error_of_a_wrong_call_ends_at_the_line_of_the_test():
    class Thing:
        async def double(self, number):
            return {}[number]  # an error of the thing itself

    def wrong(call):
        try:
            call(Blocking(Calls(portal), Thing))
        except (AttributeError, TypeError, KeyError) as error:
            end_traceback_at_test(error, plugin="")
            return type(error), [frame.f_code.co_name for frame, _ in walk_tb(error.__traceback__)][-1]

    def lines():
        return [
            wrong(lambda thing: thing.duoble(1)),
            wrong(lambda thing: thing.double(nomber=1)),
            wrong(lambda thing: thing.double(1)),
        ]

    async with BlockingPortal() as portal:
        found = await anyio.to_thread.run_sync(lines)
    assert found == [(AttributeError, "<lambda>"), (TypeError, "<lambda>"), (KeyError, "double")]


def test_report_names_the_worker_of_each_line():
    account = asdict(Account(reset="memory, as chosen", boots=[3.0], again=["a: b"]))
    assert lines_of(**account, worker="gw1") == [
        "[gw1] reset: memory, as chosen; 1 boot(s), 0 reset(s)",
        "[gw1] booted anew after a: b",
    ]


def test_folder_of_a_failed_test_has_its_name():
    assert folder_name("tests/test_x.py::TestIt::test_y") == "tests-test_x.py-TestIt-test_y"
    assert folder_name("test_x.py::test_y[raw]") == "test_x.py-test_y-raw"
    assert folder_name("test_x.py::test_y[ä b]") == "test_x.py-test_y-b-5eb7a4bd"


def test_no_two_tests_have_the_same_folder():
    long = 110 * "x"
    values = ["a-b", "a/b", "a b", "a", "a-", "ä", "ö", "\udce4", long, f"{long}x"]
    names = {folder_name(f"test_x.py::test_y[{value}]") for value in values}
    assert len(names) == len(values)
    assert max(map(len, names)) <= 109
