from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Io
from qmpsnap.model.step import AddNode, DropNode, Inside, MoveRoot, Overlay, PutOverlays, Root
from qmpsnap.plan.commands.block import (
    blockdev_add,
    blockdev_del,
    check_active,
    check_roots,
    flush,
    internal_delete,
    internal_snapshot,
    open_overlay,
    open_root,
    open_store,
    open_store_to_read,
    probe_absent,
    put_on,
    reopen_filter,
    set_drive,
    snapshot_sync,
)
from qmpsnap.testing.drawing import chain, graph
from tests.each import each
from tests.plan.commands.flags import flags

NEW = Root("vda", "qmpsnap-a-1", "/new", "qcow2", "/base", (("/base", "raw"),))
OLD = Root("vda", "old", "/old", "qcow2", "/base", (("/base", "raw"),))


def test_a_probe_is_a_blockdev_add_that_leaves_nothing() -> None:
    step = probe_absent("/f", "n")
    assert (step.on, step.command, step.way) == ("qmp", "blockdev-add", "probe")
    assert step.arguments == {"driver": "file", "node-name": "n", "filename": "/f", "read-only": True}
    assert (flags(step), step.undo, step.effect) == ("", (), None)


def test_an_encrypted_overlay_is_opened_before_the_transaction_that_puts_it_on() -> None:
    overlay = Overlay("vda", "a", "qmpsnap-a-1", "/o/a", "/a", "us", "sec0")
    step = open_overlay(overlay, Io(direct=True, detect_zeroes="unmap"))
    assert step.arguments == {
        "driver": "qcow2",
        "node-name": "qmpsnap-a-1",
        "file": {"driver": "file", "filename": "/o/a"},
        "cache": {"direct": True, "no-flush": False},
        "discard": "unmap",
        "encrypt": {"format": "luks", "key-secret": "sec0"},
        "backing": None,
    }
    assert (step.undo, step.effect) == (
        (blockdev_del("qmpsnap-a-1"),),
        AddNode("qmpsnap-a-1", "qcow2", "/o/a"),
    )
    assert snapshot_sync((overlay,)).arguments == {
        "actions": [{"type": "blockdev-snapshot", "data": {"node": "a", "overlay": "qmpsnap-a-1"}}]
    }


def test_a_snapshot_is_one_transaction_over_its_overlays() -> None:
    overlays = (
        Overlay("vda", "a", "n1", "/o/a", "/a", "us"),
        Overlay("vdb", "b", "n2", "/o/b", "/b", "qemu"),
    )
    step = snapshot_sync(overlays)
    assert (step.on, step.command) == ("qmp", "transaction")
    assert step.arguments == {
        "actions": [
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": "a",
                    "snapshot-node-name": "n1",
                    "snapshot-file": "/o/a",
                    "format": "qcow2",
                    "mode": "existing",
                },
            },
            {
                "type": "blockdev-snapshot-sync",
                "data": {
                    "node-name": "b",
                    "snapshot-node-name": "n2",
                    "snapshot-file": "/o/b",
                    "format": "qcow2",
                    "mode": "absolute-paths",
                },
            },
        ]
    }
    assert step.detail == {"vda": ("a", "n1", "/o/a", "/a"), "vdb": ("b", "n2", "/o/b", "/b")}
    assert (flags(step), step.undo, step.effect) == ("final writes drains", (), PutOverlays(overlays))


def test_a_snapshot_inside_is_one_transaction_over_the_roots() -> None:
    step = internal_snapshot("i1", (("vda", "root-a"), ("vdb", "#block12")))
    assert (step.on, step.command) == ("qmp", "transaction")
    assert step.arguments == {
        "actions": [
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": "root-a", "name": "i1"}},
            {"type": "blockdev-snapshot-internal-sync", "data": {"device": "#block12", "name": "i1"}},
        ]
    }
    assert step.detail == {"vda": ("root-a",), "vdb": ("#block12",)}
    assert (flags(step), step.undo) == ("final writes drains", ())
    assert step.effect == Inside(("vda", "vdb"), "i1")


def test_a_deletion_names_the_snapshot_by_id_and_name() -> None:
    step = internal_delete("vda", "root-a", "3", "i1")
    assert (step.on, step.command) == ("qmp", "blockdev-snapshot-delete-internal-sync")
    assert step.arguments == {"device": "root-a", "id": "3", "name": "i1"}
    assert (flags(step), step.undo) == ("final writes", ())
    assert step.effect == Inside(("vda",), "i1", "3", gone=True)
    assert step.job_id == ""


@each(("backing", "more"), [(None, {}), ("vda-s1", {"backing": "vda-s1"})])
def test_an_image_is_opened_with_its_file_and_freed_by_its_name(
    backing: str | None, more: dict[str, str]
) -> None:
    step = blockdev_add("n", "/f", backing=backing)
    assert (step.on, step.command) == ("qmp", "blockdev-add")
    assert step.arguments == {
        "driver": "qcow2",
        "node-name": "n",
        "file": {"driver": "file", "filename": "/f"},
        **more,
    }
    assert (flags(step), step.undo, step.effect) == ("", (blockdev_del("n"),), AddNode("n", "qcow2", "/f"))


@each(
    ("io", "unmap", "more"),
    [
        (Io(), True, {"discard": "unmap"}),
        (Io(direct=True), False, {"cache": {"direct": True, "no-flush": False}}),
        (Io(no_flush=True), False, {"cache": {"direct": False, "no-flush": True}}),
        (Io(detect_zeroes="on"), False, {"detect-zeroes": "on"}),
        (Io(detect_zeroes="unmap"), False, {"detect-zeroes": "unmap", "discard": "unmap"}),
    ],
)
def test_an_image_is_opened_as_it_is_to_be_read_where_that_is_not_qemus_default(
    io: Io, *, unmap: bool, more: dict[str, object]
) -> None:
    plain = blockdev_add("n", "/f").arguments
    assert blockdev_add("n", "/f", io=io, unmap=unmap).arguments == {**plain, **more}


@each(("backing", "unmap"), [("/base", True), (None, False)])
def test_a_root_is_opened_as_it_is_read_and_takes_discards_when_it_is_an_overlay(
    backing: str | None, *, unmap: bool
) -> None:
    root = replace(NEW, backing=backing, io=Io(direct=True))
    assert open_root(root, backing="b") == blockdev_add(
        root.node, "/new", "qcow2", backing="b", io=Io(direct=True), unmap=unmap
    )


def test_a_store_is_opened_as_any_image_is_and_closed_in_any_run_state() -> None:
    assert open_store("n", "/f") == replace(blockdev_add("n", "/f"), restores=True)


def test_open_store_to_read_asks_for_io_uring() -> None:
    step = open_store_to_read("n", "/f")
    assert step.arguments == {
        "driver": "qcow2",
        "node-name": "n",
        "file": {"driver": "file", "filename": "/f", "aio": "io_uring"},
    }
    assert (step.undo, step.restores) == ((blockdev_del("n"),), True)


def test_a_node_that_is_freed_is_gone() -> None:
    step = blockdev_del("n")
    assert (step.on, step.command, step.arguments) == ("qmp", "blockdev-del", {"node-name": "n"})
    assert (flags(step), step.undo, step.effect) == ("", (), DropNode("n"))


def test_set_drive_sets_a_property_of_the_device() -> None:
    step = set_drive(NEW, "/machine/peripheral/vda", OLD, closes=False)
    assert (step.on, step.command) == ("qmp", "qom-set")
    assert step.arguments == {"path": "/machine/peripheral/vda", "property": "drive", "value": "qmpsnap-a-1"}
    assert (flags(step), step.effect) == ("final pauses", MoveRoot(NEW, alone=True))
    (back,) = step.undo
    assert back.arguments == {"path": "/machine/peripheral/vda", "property": "drive", "value": "old"}
    assert (flags(back), back.effect, back.undo) == ("final pauses", MoveRoot(OLD, alone=True), ())


def test_reopen_filter_says_all_options_of_the_throttle() -> None:
    step = reopen_filter(NEW, "thr", "tg", OLD, closes=False)
    assert (step.on, step.command) == ("qmp", "blockdev-reopen")
    options = {"driver": "throttle", "node-name": "thr", "throttle-group": "tg", "file": "qmpsnap-a-1"}
    assert step.arguments == {"options": [options]}
    assert (flags(step), step.effect) == ("final pauses", MoveRoot(NEW))
    (back,) = step.undo
    assert back.arguments == {"options": [{**options, "file": "old"}]}
    assert (flags(back), back.effect, back.undo) == ("final pauses", MoveRoot(OLD), ())


def test_reopen_filter_keeps_how_the_throttle_was_opened() -> None:
    io = Io(direct=True, detect_zeroes="on")
    there = reopen_filter(NEW, "thr", "tg", OLD, closes=False, io=io)
    for step in (there, *there.undo):
        (options,) = step.arguments["options"]
        assert options["cache"] == {"direct": True, "no-flush": False}
        assert (options["detect-zeroes"], "discard" in options) == ("on", False)


def test_an_old_root_that_qemu_closes_is_opened_again_to_be_put_back() -> None:
    old = replace(OLD, io=Io(direct=True))
    again = blockdev_add("old", "/old", io=Io(direct=True), unmap=True)
    drive = set_drive(NEW, "/q", old, closes=True)
    assert drive.effect == MoveRoot(NEW, alone=True, closes=True)
    assert drive.undo[0] == again
    assert drive.undo[1:] == set_drive(NEW, "/q", old, closes=False).undo
    throttle = reopen_filter(NEW, "thr", "tg", old, closes=True)
    assert throttle.effect == MoveRoot(NEW, closes=True)
    assert throttle.undo[0] == again
    assert throttle.undo[1:] == reopen_filter(NEW, "thr", "tg", old, closes=False).undo


def test_check_roots_says_which_root_is_expected_of_each_disk() -> None:
    step = check_roots((("vda", "/q/vda", "n1"), ("vdb", "/q/vdb", "n2")))
    assert (step.on, step.command, step.arguments) == ("wait", "check-roots", {"vda": "n1", "vdb": "n2"})
    assert step.detail == {"vda": "/q/vda", "vdb": "/q/vdb"}
    assert (flags(step), step.undo, step.effect) == ("", (), None)


def test_an_image_is_put_on_another_layer_with_all_of_its_options_given_again() -> None:
    opened = open_root(replace(NEW, io=Io(direct=True)), backing="a")
    step = put_on(opened, "b")
    assert (step.on, step.command) == ("qmp", "blockdev-reopen")
    assert step.arguments == {"options": [{**opened.arguments, "backing": "b"}]}
    assert step.arguments["options"][0]["cache"] == {"direct": True, "no-flush": False}
    assert (flags(step), step.undo, step.effect) == ("", (), None)


def test_check_active_says_which_nodes_are_expected_down_to_each_active_layer() -> None:
    drawn = graph(chain("base <- s1*"), chain("data*", name="vdb"))
    under = replace(drawn.disks["vdb"], root="thr", qdev="/q/vdb")
    step = check_active([drawn.disks["vda"], under])
    assert (step.on, step.command) == ("wait", "check-active")
    assert step.arguments == {"vda": ("vda-s1",), "vdb": ("thr", "vdb-data")}
    assert step.detail == {"vda": drawn.disks["vda"].qdev, "vdb": "/q/vdb"}
    assert (flags(step), step.undo, step.effect) == ("", (), None)


def test_a_flush_is_one_line_of_the_human_monitor() -> None:
    step = flush("#block1")
    assert (step.on, step.command, step.way) == ("qmp", "human-monitor-command", "flush")
    assert step.arguments == {"command-line": "qemu-io #block1 flush"}
    assert (flags(step), step.undo, step.effect) == ("", (), None)
