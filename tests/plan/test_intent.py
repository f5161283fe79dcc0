from __future__ import annotations

from qmpsnap.plan.intent import Checkpoint, Commit, Mirror, Revert, Snapshot, Stream


def test_intents_default_to_what_the_command_line_promises() -> None:
    assert Snapshot("n1") == Snapshot("n1", disks=(), files={}, use_existing=False)
    assert Stream("vda") == Stream("vda", base=None, into=None, on_error="report", speed=0)
    assert Commit("vda") == Commit("vda", None, None, False, (), (), "rename", False, "report", 0)
    assert Mirror("vda", "/c", "finish") == Mirror(
        "vda", "/c", "finish", "full", None, False, False, "report", 0
    )


def test_intents_on_vm_state_default_to_what_keeps_most() -> None:
    assert Checkpoint("c1") == Checkpoint("c1", mode="stop", memory="")
    assert Revert("c1") == Revert("c1", leave=(), discard=False, via=None)
