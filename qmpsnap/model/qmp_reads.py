"""Which QMP commands only read. The schema does not say it, so what is not listed here may change something.

Read in the sources of QEMU 7.2, 10.0 and 11.1. `ringbuf-read` takes out what it returns, the human monitor's
`x`, `xp` and `i` read devices, which may notice it, and `screendump` and the like write files.
"""

from __future__ import annotations

from collections.abc import Mapping

_READS = frozenset(
    {
        "qom-get",
        "qom-list",
        "qom-list-get",
        "qom-list-properties",
        "qom-list-types",
        "device-list-properties",
        "trace-event-get-state",
        "x-accel-stats",
        "x-debug-block-dirty-bitmap-sha256",
        "x-debug-query-block-graph",
        "xen-event-list",
    }
)
_QUERIES = ("query-", "x-query-")  # by QEMU's convention, without exception in these versions

# Commands of the human monitor, by their first word.
_MONITOR = frozenset({"info", "help", "?", "qom-list", "qom-get", "gva2gpa", "gpa2hva", "gpa2hpa"})


def only_reads(command: str, arguments: Mapping[str, object]) -> bool:
    """Whether a command is known to change nothing."""
    if command == "human-monitor-command":
        line = arguments.get("command-line")
        return isinstance(line, str) and line.split()[:1] != [] and line.split()[0] in _MONITOR
    return command in _READS or command.startswith(_QUERIES)
