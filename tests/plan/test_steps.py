from __future__ import annotations

import json

import pytest

from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.host_steps import (
    CreateOverlay,
    CreatePlaceholder,
    FinishRecord,
    HostStep,
    KeepMoment,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    WriteRecord,
)
from qmpsnap.plan.steps import (
    AdoptJob,
    AwaitJob,
    CancelJob,
    CompleteJob,
    DeleteNode,
    DismissJob,
    EndCopy,
    FinalizeJob,
    FlushNode,
    ProbeAbsent,
    StartMirror,
    Step,
)

JOB = "qmpsnap-mirror-copy-00000000"


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (CompleteJob(JOB), "job-complete", {"id": JOB}),
        (EndCopy(JOB), "block-job-cancel", {"device": JOB, "force": False}),
        (CancelJob(JOB), "job-cancel", {"id": JOB}),
        (FinalizeJob(JOB), "job-finalize", {"id": JOB}),
        (FlushNode("#block1"), "human-monitor-command", {"command-line": "qemu-io #block1 flush"}),
        (DismissJob(JOB), "job-dismiss", {"id": JOB}),
        (DeleteNode("n"), "blockdev-del", {"node-name": "n"}),
        (
            ProbeAbsent("/f", "n"),
            "blockdev-add",
            {"driver": "file", "node-name": "n", "filename": "/f", "read-only": True},
        ),
    ],
)
def test_a_qmp_step_says_word_for_word_what_is_sent(
    step: Step, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command, step.arguments) == ("qmp", command, arguments)


def test_a_mirror_onto_an_existing_file_is_told_so_and_names_what_it_replaces() -> None:
    step = StartMirror(JOB, "vda", "thr", "f1", "/c", "raw", "copy", "top", True, "ignore", 0)
    assert (step.arguments["mode"], step.arguments["replaces"]) == ("existing", "f1")


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (AwaitJob(JOB, "ready"), "await-job", {"id": JOB, "until": "ready"}),
        (AdoptJob(JOB), "adopt-job", {"id": JOB}),
    ],
)
def test_a_wait_sends_nothing_and_says_what_it_waits_for(
    step: Step, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command, step.arguments) == ("wait", command, arguments)


@pytest.mark.parametrize(
    ("step", "command", "arguments"),
    [
        (
            WriteRecord("/r", IntentRecord(JOB, "mirror", "2024-05-01T12:00:00+00:00")),
            "write-record",
            {"directory": "/r", "id": JOB},
        ),
        (FinishRecord("/r", (JOB,)), "finish-record", {"directory": "/r", "ids": [JOB]}),
        (KeepMoment("/r", JOB, "n1"), "keep-moment", {"directory": "/r", "id": JOB, "name": "n1"}),
        (
            CreateOverlay("/o", 7, "/b", "raw", "/b"),
            "create-overlay",
            {"file": "/o", "size_bytes": 7, "backing": "/b", "backing_format": "raw", "like": "/b"},
        ),
        (CreatePlaceholder("/o", "/b"), "create-file", {"file": "/o", "like": "/b"}),
        (
            RetireFile("/f", "rename", "/f.invalid"),
            "retire-file",
            {"file": "/f", "policy": "rename", "to": "/f.invalid"},
        ),
        (RemoveMade("/o"), "remove-file", {"file": "/o"}),
        (RemoveOrphan("/o", None), "remove-orphan", {"file": "/o", "backing": None}),
    ],
)
def test_a_step_of_ours_says_what_it_does_in_json(
    step: HostStep, command: str, arguments: dict[str, object]
) -> None:
    assert (step.on, step.command) == ("host", command)
    assert json.loads(json.dumps(step.arguments)) == arguments
