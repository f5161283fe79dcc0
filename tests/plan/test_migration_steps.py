from __future__ import annotations

import pytest

from qmpsnap.plan.migration_steps import (
    AwaitClosed,
    AwaitMigration,
    CancelMigration,
    LoadMemory,
    MigrationStep,
    PassFile,
    ReleaseFile,
    SaveMemory,
    SetCapabilities,
    SetParameters,
)

OLD, NEW = PassFile("/m", 7, "fd", write=True), PassFile("/m", 7, "fdset", write=True)


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (
            SetCapabilities((("events", True), ("xbzrle", False)), (("events", False), ("xbzrle", True))),
            "migrate-set-capabilities",
            {
                "capabilities": [
                    {"capability": "events", "state": True},
                    {"capability": "xbzrle", "state": False},
                ]
            },
        ),
        (SetParameters((("max-bandwidth", 9),), ()), "migrate-set-parameters", {"max-bandwidth": 9}),
        (OLD, "getfd", {"fdname": "qmpsnap-7"}),
        (NEW, "add-fd", {"fdset-id": 7, "opaque": "qmpsnap"}),
        (ReleaseFile(7, "fd"), "closefd", {"fdname": "qmpsnap-7"}),
        (ReleaseFile(7, "fdset"), "remove-fd", {"fdset-id": 7}),
        (SaveMemory("fd:qmpsnap-7", may_stop=False), "migrate", {"uri": "fd:qmpsnap-7"}),
        (LoadMemory("file:/dev/fdset/7"), "migrate-incoming", {"uri": "file:/dev/fdset/7"}),
        (CancelMigration(wait=True), "migrate_cancel", {}),
    ],
)
def test_migration_step_says_word_for_word_what_is_sent(
    step: MigrationStep, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command, step.arguments) == ("qmp", command, arguments)


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (AwaitMigration("kept"), "await-migration", {"until": "kept"}),
        (AwaitClosed("/m"), "await-closed", {"file": "/m"}),
    ],
)
def test_migration_wait_says_what_for(
    step: MigrationStep, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command, step.arguments) == ("wait", command, arguments)


def test_pass_file_names_what_a_migration_calls_it_by() -> None:
    assert (OLD.uri, NEW.uri) == ("fd:qmpsnap-7", "file:/dev/fdset/7")


def test_migration_settings_and_files_know_what_takes_them_back() -> None:
    capabilities = SetCapabilities((("events", True),), (("events", False),))
    assert capabilities.back() == SetCapabilities((("events", False),), (("events", True),))
    parameters = SetParameters((("max-bandwidth", 9),), (("max-bandwidth", 1),))
    assert parameters.back() == SetParameters((("max-bandwidth", 1),), (("max-bandwidth", 9),))
    assert (OLD.back(), NEW.back()) == (ReleaseFile(7, "fd"), ReleaseFile(7, "fdset"))
