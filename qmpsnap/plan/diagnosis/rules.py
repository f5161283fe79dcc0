"""The table of all rules.

To add one: a function, a line here, its meaning (model/meaning/findings.py), its test, and its section of
troubles.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from qmpsnap.model.finding import Finding, Severity
from qmpsnap.model.meaning.findings import FINDINGS
from qmpsnap.plan.diagnosis import access, chain, guest, images, jobs, kept, monitor, nodes
from qmpsnap.plan.diagnosis.facts import Case, Facts

Look = Callable[[Facts], Iterator[Case]]


class Rule(Struct, frozen=True):
    """How one trouble is recognised.

    Attributes:
        code: Its code, which `Finding.code` repeats.
        look: Yields each occurrence of it.
        severity: Whether something is wrong.
    """

    code: str
    look: Look
    severity: Severity = "trouble"

    @property
    def what(self) -> str:
        """What the trouble is, in one sentence."""
        return FINDINGS[self.code].text


RULES = (
    Rule("monitor-held", monitor.monitor_held),
    Rule("monitor-silent", monitor.monitor_silent),
    Rule("disk-full", guest.disk_full),
    Rule("io-error", guest.io_error),
    Rule("guest-failed", guest.guest_failed),
    Rule("load-failed", guest.load_failed),
    Rule("guest-frozen", guest.guest_frozen),
    Rule("started-below", chain.started_below),
    Rule("image-in-use", access.image_in_use),
    Rule("layer-moved", chain.layer_moved),
    Rule("backing-missing", images.backing_missing),
    Rule("format-missing", images.format_unknown),
    Rule("format-wrong", images.format_differs),
    Rule("image-refused", images.image_refused),
    Rule("image-damaged", images.image_damaged),
    Rule("backing-wrong", chain.backing_wrong),
    Rule("format-wrong", chain.format_wrong),
    Rule("format-missing", chain.format_missing),
    Rule("format-wrong", chain.read_as_raw),
    Rule("operation-left", jobs.operation_left),
    Rule("job-stopped", jobs.job_stopped),
    Rule("job-paused", jobs.job_paused),
    Rule("job-concluded", jobs.job_concluded),
    Rule("filter-left", nodes.filter_left),
    Rule("node-left", nodes.node_left),
    Rule("layer-invalid", kept.layer_invalid),
    Rule("snapshot-lost", kept.moment_lost),
    Rule("layer-written", kept.layer_written),
    Rule("bitmap-inconsistent", kept.bitmap_inconsistent),
    Rule("state-missing", kept.state_missing),
    Rule("state-unused", kept.state_unused),
    Rule("keeper-left", kept.keeper_left),
    Rule("record-unreadable", kept.record_unreadable),
    Rule("chain-long", chain.chain_long),
    Rule("space-low", guest.space_low),
    Rule("job-waits", jobs.job_waits, "limit"),
    Rule("agent-silent", guest.agent_silent, "limit"),
    Rule("bitmap-busy", kept.bitmap_busy, "limit"),
    Rule("keeper-gone", kept.keeper_gone, "limit"),
    Rule("not-writable", access.not_writable, "limit"),
    Rule("device-in-way", guest.device_in_way, "limit"),
    Rule("no-internal", access.no_internal, "limit"),
)
"""In the order in which findings are reported: what stops the guest first, limits last."""


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Everything that is wrong, the most urgent first."""
    return tuple(Finding(rule.code, rule.severity, *case) for rule in RULES for case in rule.look(facts))
