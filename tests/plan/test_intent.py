from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import BadArgument, BadName, QmpsnapError
from qmpsnap.plan.intent import (
    Checkpoint,
    CheckpointInternal,
    Commit,
    Mirror,
    Restore,
    Revert,
    Save,
    Snapshot,
    SnapshotInternal,
    Stream,
)

if TYPE_CHECKING:
    from collections.abc import Mapping


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


WRONG: Mapping[str, tuple[type[Any], tuple[Any, ...], dict[str, Any], type[QmpsnapError], str]] = {
    "relative target": (Mirror, ("vda", "copy.qcow2", "pivot"), {}, BadArgument, "give an absolute path"),
    "relative overlay": (Snapshot, ("n1", ("vda",), {"vda": "o"}), {}, BadArgument, "give an absolute path"),
    "relative memory": (Checkpoint, ("c1",), {"memory": "m"}, BadArgument, "give an absolute path"),
    "relative state": (Save, ("m",), {}, BadArgument, "give an absolute path"),
    "relative source": (Restore, ("m",), {}, BadArgument, "give an absolute path"),
    "relative image": (Commit, ("vda",), {"invalidate": ("x",)}, BadArgument, "give an absolute path"),
    "relative place": (Commit, ("vda",), {"look_in": ("x",)}, BadArgument, "give an absolute path"),
    "format": (Mirror, ("vda", "/c", "pivot"), {"format": "vmdk"}, BadArgument, "give 'raw' or 'qcow2'"),
    "internal": (Checkpoint, ("c1", "internal"), {}, BadArgument, "'stop', 'background' or 'in-place'"),
    "no tuple": (Snapshot, ("n1", ["vda"]), {}, BadArgument, "give a tuple"),
    "name": (Snapshot, ("n/1",), {}, BadName, "valid snapshot name"),
    "checkpoint's name": (Checkpoint, ("c/1",), {}, BadName, "valid snapshot name"),
    "name inside": (SnapshotInternal, ("a b",), {}, BadName, "valid snapshot name"),
    "checkpoint's name inside": (CheckpointInternal, ('c"',), {}, BadName, "valid snapshot name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_intent_cannot_be_made_of_what_no_operation_takes(case: str) -> None:
    kind, arguments, more, error, said = WRONG[case]
    with pytest.raises(error, match=said):
        kind(*arguments, **more)


def test_intent_keeps_its_own_mapping() -> None:
    files = {"vda": "/o"}
    intent = Snapshot("n1", ("vda",), files)
    files["vda"] = "/other"
    assert intent.files == {"vda": "/o"}
