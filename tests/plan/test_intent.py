from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import BadArgument, BadName, QmpsnapError
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Mirror,
    Restore,
    Revert,
    Save,
    Snapshot,
    Stream,
)
from tests.each import each

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
    "mode": (Checkpoint, ("c1", "inside"), {}, BadArgument, "'stop', 'background', 'in-place' or 'internal'"),
    "file inside": (Checkpoint, ("c1", "internal"), {"memory": "/m"}, BadArgument, "saves the memory in an"),
    "left outside": (Checkpoint, ("c1",), {"leave": ("vda",)}, BadArgument, "it is for the mode 'internal'"),
    "way outside": (Checkpoint, ("c1",), {"via": "hmp"}, BadArgument, "it is for the mode 'internal'"),
    "overlay inside": (Snapshot, ("n1", ("vda",), {"vda": "/o"}), {"inside": True}, BadArgument, "overlays"),
    "overlays inside": (Snapshot, ("n1",), {"use_existing": True, "inside": True}, BadArgument, "overlays"),
    "discarded elsewhere": (Revert, ("c1",), {"discard": True, "into": "new"}, BadArgument, "same QEMU"),
    "left elsewhere": (Revert, ("c1", ("vda",)), {"into": "incoming"}, BadArgument, "same QEMU"),
    "way elsewhere": (Revert, ("c1",), {"via": "jobs", "into": "new"}, BadArgument, "same QEMU"),
    "no tuple": (Snapshot, ("n1", ["vda"]), {}, BadArgument, "give a tuple"),
    "name": (Snapshot, ("n/1",), {}, BadName, "valid snapshot name"),
    "checkpoint's name": (Checkpoint, ("c/1",), {}, BadName, "valid snapshot name"),
    "name inside": (Snapshot, ("a b",), {"inside": True}, BadName, "valid snapshot name"),
    "checkpoint's name inside": (Checkpoint, ('c"', "internal"), {}, BadName, "valid snapshot name"),
}


@each("case", WRONG)
def test_intent_cannot_be_made_of_what_no_operation_takes(case: str) -> None:
    kind, arguments, more, error, said = WRONG[case]
    with pytest.raises(error, match=said):
        kind(*arguments, **more)


def test_intent_keeps_its_own_mapping() -> None:
    files = {"vda": "/o"}
    intent = Snapshot("n1", ("vda",), files)
    files["vda"] = "/other"
    assert intent.files == {"vda": "/o"}
