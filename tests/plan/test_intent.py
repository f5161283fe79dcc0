from __future__ import annotations

from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream


def test_intents_default_to_what_the_command_line_promises() -> None:
    assert Snapshot("n1") == Snapshot("n1", disks=(), files={}, use_existing=False)
    assert Stream("vda") == Stream("vda", base=None, into=None, on_error="report", speed=0)
    assert Commit("vda") == Commit("vda", None, None, False, (), (), "rename", False, "report", 0)
    assert Mirror("vda", "/c", "finish") == Mirror(
        "vda", "/c", "finish", "full", None, False, False, "report", 0
    )
