from __future__ import annotations

from dataclasses import replace

import pytest

from qmpsnap.model.graph import Io
from qmpsnap.plan.root_steps import AddNode, AddStore, CheckRoots, NewRoot, ReopenFilter, SetDrive

NEW = NewRoot("vda", "qmpsnap-a-1", "/new", "qcow2", "/base", (("/base", "raw"),))
OLD = NewRoot("vda", "old", "/old", "qcow2", "/base", (("/base", "raw"),))


@pytest.mark.parametrize(
    ("backing", "more"), [(None, {}), ("vda-s1", {"backing": "vda-s1"})], ids=["header", "node"]
)
def test_add_node_opens_an_image_with_its_file(backing: str | None, more: dict[str, str]) -> None:
    step = AddNode("n", "/f", backing=backing)
    assert (step.on, step.command) == ("qmp", "blockdev-add")
    assert step.arguments == {
        "driver": "qcow2",
        "node-name": "n",
        "file": {"driver": "file", "filename": "/f"},
        **more,
    }


@pytest.mark.parametrize(
    ("io", "unmap", "more"),
    [
        (Io(), True, {"discard": "unmap"}),
        (Io(direct=True), False, {"cache": {"direct": True, "no-flush": False}}),
        (Io(no_flush=True), False, {"cache": {"direct": False, "no-flush": True}}),
        (Io(detect_zeroes="on"), False, {"detect-zeroes": "on"}),
        (Io(detect_zeroes="unmap"), False, {"detect-zeroes": "unmap", "discard": "unmap"}),
    ],
)
def test_add_node_says_how_the_image_is_read_and_written_where_it_is_not_qemus_default(
    io: Io, *, unmap: bool, more: dict[str, object]
) -> None:
    plain = AddNode("n", "/f").arguments
    assert AddNode("n", "/f", io=io, unmap=unmap).arguments == {**plain, **more}


@pytest.mark.parametrize(("backing", "unmap"), [("/base", True), (None, False)])
def test_new_root_is_opened_as_it_is_read_and_takes_discards_when_it_is_an_overlay(
    backing: str | None, *, unmap: bool
) -> None:
    root = replace(NEW, backing=backing, io=Io(direct=True))
    assert root.opened(backing="b") == AddNode(root.node, "/new", "qcow2", "b", Io(direct=True), unmap)


def test_add_store_is_sent_as_any_image_is() -> None:
    assert AddStore("n", "/f").arguments == AddNode("n", "/f").arguments


def test_set_drive_sets_a_property_of_the_device() -> None:
    step = SetDrive(NEW, "/machine/peripheral/vda", OLD, closes=False)
    assert (step.on, step.command) == ("qmp", "qom-set")
    assert step.arguments == {"path": "/machine/peripheral/vda", "property": "drive", "value": "qmpsnap-a-1"}


def test_reopen_filter_says_all_options_of_the_throttle() -> None:
    step = ReopenFilter(NEW, "thr", "tg", OLD, closes=False)
    assert (step.on, step.command) == ("qmp", "blockdev-reopen")
    assert step.arguments == {
        "options": [{"driver": "throttle", "node-name": "thr", "throttle-group": "tg", "file": "qmpsnap-a-1"}]
    }


def test_reopen_filter_keeps_how_the_throttle_was_opened() -> None:
    io = Io(direct=True, detect_zeroes="on")
    there = ReopenFilter(NEW, "thr", "tg", OLD, closes=False, io=io)
    for step in (there, *there.back()):
        sent = step.arguments["options"]
        assert isinstance(sent, list)
        options = sent[0]
        assert options["cache"] == {"direct": True, "no-flush": False}
        assert (options["detect-zeroes"], "discard" in options) == ("on", False)


@pytest.mark.parametrize("closes", [True, False])
def test_new_root_is_taken_back_by_the_old_one_opened_again_where_qemu_closed_it(closes: bool) -> None:
    old = replace(OLD, io=Io(direct=True))
    again = (AddNode("old", "/old", io=Io(direct=True), unmap=True),) if closes else ()
    drive = SetDrive(NEW, "/q", old, closes)
    assert drive.back() == (*again, SetDrive(old, "/q", NEW, closes=False))
    throttle = ReopenFilter(NEW, "thr", "tg", old, closes)
    assert throttle.back() == (*again, ReopenFilter(old, "thr", "tg", NEW, closes=False))


def test_check_roots_says_which_root_is_expected_of_each_disk() -> None:
    step = CheckRoots((("vda", "/q/vda", "n1"), ("vdb", "/q/vdb", "n2")))
    assert (step.on, step.command, step.arguments) == ("wait", "check-roots", {"vda": "n1", "vdb": "n2"})
