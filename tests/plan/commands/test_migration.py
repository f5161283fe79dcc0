from __future__ import annotations

from typing import TYPE_CHECKING

from qmpsnap.plan.commands.migration import (
    Ending,
    Way,
    await_closed,
    await_migration,
    ending,
    migrate,
    migrate_cancel,
    migrate_incoming,
    pass_file,
    release_file,
    set_capabilities,
    set_parameters,
    uri,
)
from tests.each import each
from tests.plan.commands.flags import flags

if TYPE_CHECKING:
    from qmpsnap.model.step import Step


def test_capabilities_are_set_one_entry_each_and_put_back() -> None:
    step = set_capabilities({"events": True, "xbzrle": False}, {"events": False, "xbzrle": True})
    assert (step.on, step.command, flags(step)) == ("qmp", "migrate-set-capabilities", "restores owed")
    assert step.arguments == {
        "capabilities": [
            {"capability": "events", "state": True},
            {"capability": "xbzrle", "state": False},
        ]
    }
    (back,) = step.undo
    assert (back.command, flags(back), back.undo) == (step.command, flags(step), ())
    assert back.arguments == {
        "capabilities": [
            {"capability": "events", "state": False},
            {"capability": "xbzrle", "state": True},
        ]
    }


def test_parameters_are_set_and_put_back() -> None:
    step = set_parameters({"max-bandwidth": 9}, {"max-bandwidth": 1})
    assert (step.on, step.command, flags(step)) == ("qmp", "migrate-set-parameters", "restores owed")
    assert step.arguments == {"max-bandwidth": 9}
    (back,) = step.undo
    assert (back.command, back.arguments, back.undo) == (step.command, {"max-bandwidth": 1}, ())
    assert flags(back) == flags(step)


@each(
    ("way", "passed", "released", "name"),
    [
        (
            "fd",
            ("getfd", {"fdname": "qmpsnap-7"}),
            ("closefd", {"fdname": "qmpsnap-7"}),
            "fd:qmpsnap-7",
        ),
        (
            "fdset",
            ("add-fd", {"fdset-id": 7, "opaque": "qmpsnap"}),
            ("remove-fd", {"fdset-id": 7}),
            "file:/dev/fdset/7",
        ),
    ],
)
def test_a_file_is_passed_released_and_named_by_its_number(
    way: Way, passed: tuple[str, object], released: tuple[str, object], name: str
) -> None:
    step = pass_file("/m", 7, way, write=True)
    assert (step.on, (step.command, step.arguments), flags(step)) == ("qmp", passed, "restores")
    assert step.detail == {"file": "/m", "number": 7, "write": True, "inode": 0}
    assert step.undo == (release_file(7, way),)
    (back,) = step.undo
    assert (back.on, (back.command, back.arguments), flags(back), back.undo) == ("qmp", released, "", ())
    assert uri(7, way) == name


def test_a_fifo_that_is_passed_is_told_from_a_file() -> None:
    step = pass_file("/m", 7, "fd", write=False, fifo=True)
    assert step.detail == {"file": "/m", "number": 7, "write": False, "inode": 0, "fifo": True}


@each(
    ("way", "background", "expected"),
    [
        ("fd", False, "cancel"),
        ("fdset", False, "cancel"),
        ("fd", True, "wait"),
        ("fdset", True, "cancel-later"),
    ],
)
def test_a_migration_is_ended_early_in_the_way_that_its_qemu_bears(
    way: Way, expected: Ending, *, background: bool
) -> None:
    how = ending(way, background=background)
    step = migrate("fd:qmpsnap-7", ending=how)
    assert (step.on, step.command, step.arguments) == ("qmp", "migrate", {"uri": "fd:qmpsnap-7"})
    (cancel,) = step.undo
    assert (flags(step), cancel) == ("pauses", migrate_cancel(how))
    assert (cancel.on, cancel.command, cancel.arguments) == ("qmp", "migrate_cancel", {})
    assert cancel.detail == {"ending": expected}
    assert (flags(cancel), cancel.undo) == ("", ())


def test_memory_that_comes_in_is_rolled_back_by_nothing() -> None:
    step = migrate_incoming("file:/dev/fdset/7")
    assert (step.on, step.command) == ("qmp", "migrate-incoming")
    assert step.arguments == {"uri": "file:/dev/fdset/7"}
    assert (flags(step), step.undo) == ("final loads unseen", ())


@each(
    ("step", "command", "arguments", "detail"),
    [
        (await_migration("kept"), "await-migration", {"until": "kept"}, {"may_stop": True}),
        (
            await_migration("loaded", may_stop=False),
            "await-migration",
            {"until": "loaded"},
            {"may_stop": False},
        ),
        (await_closed("/m"), "await-closed", {"file": "/m"}, {}),
    ],
)
def test_a_wait_for_a_migration_says_what_for(
    step: Step, command: str, arguments: dict[str, object], detail: dict[str, object]
) -> None:
    assert (step.on, step.command, step.arguments, step.detail) == ("wait", command, arguments, detail)
    assert (flags(step), step.undo) == ("", ())
