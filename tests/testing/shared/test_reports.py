"""What the plugin adds to a report."""

from __future__ import annotations

from dataclasses import asdict

from qmpsnap.testing.shared.machine import Account
from qmpsnap.testing.shared.reports import lines_of
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


def test_report_names_the_worker_of_each_line():
    account = asdict(Account(reset="memory, as chosen", boots=[3.0], again=["a: b"]))
    assert lines_of(**account, worker="gw1") == [
        "[gw1] reset: memory, as chosen; 1 boot(s), 0 reset(s)",
        "[gw1] booted anew after a: b",
    ]
