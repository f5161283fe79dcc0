from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("closes", [True, False])
def test_new_root_is_taken_back_by_the_old_one_opened_again_where_qemu_closed_it(closes: bool) -> None:
    again = (AddNode("old", "/old"),) if closes else ()
    drive = SetDrive(NEW, "/q", OLD, closes)
    assert drive.back() == (*again, SetDrive(OLD, "/q", NEW, closes=False))
    throttle = ReopenFilter(NEW, "thr", "tg", OLD, closes)
    assert throttle.back() == (*again, ReopenFilter(OLD, "thr", "tg", NEW, closes=False))


def test_check_roots_says_which_root_is_expected_of_each_disk() -> None:
    step = CheckRoots((("vda", "/q/vda", "n1"), ("vdb", "/q/vdb", "n2")))
    assert (step.on, step.command, step.arguments) == ("wait", "check-roots", {"vda": "n1", "vdb": "n2"})
