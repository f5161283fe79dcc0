from __future__ import annotations

from qmpsnap.model.qmp_reads import only_reads
from tests.each import each


@each(
    ("command", "expected"),
    [
        ("query-status", True),
        ("x-query-numa", True),
        ("qom-get", True),
        ("qom-list-properties", True),
        ("x-debug-query-block-graph", True),
        ("qom-set", False),
        ("ringbuf-read", False),
        ("transaction", False),
        ("quit", False),
        ("something-new", False),
        ("query", False),
        ("human-monitor-command", False),
    ],
)
def test_only_reads_what_is_known_to(command, expected):
    assert only_reads(command, {}) is expected


@each(
    ("line", "expected"),
    [
        ("info block", True),
        ("  info", True),
        ("qom-list /", True),
        ("savevm x", False),
        ("qemu-io disk0 flush", False),
        ("information", False),
        ("xp 0", False),
        ("", False),
        (3, False),
    ],
)
def test_only_reads_of_the_human_monitor_what_is_known_to(line, expected):
    assert only_reads("human-monitor-command", {"command-line": line}) is expected
