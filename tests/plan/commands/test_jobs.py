from __future__ import annotations

from qmpsnap.model.step import DropLayers, Later, MoveRoot, Root, Step
from qmpsnap.plan.commands.jobs import (
    adopt_job,
    await_job,
    block_commit,
    block_stream,
    end_copy,
    job_cancel,
    job_complete,
    job_dismiss,
    job_finalize,
    mirror_job,
)
from tests.each import each
from tests.plan.commands.flags import flags

JOB = "qmpsnap-commit-keep-00000000"
CANCELLED = (job_cancel(JOB), await_job(JOB, "concluded"))
COPY = Root("vda", "copy", "/c", "raw", None, ())
AS_BASE = MoveRoot(Root("vda", "b", "/b", "qcow2", None, ()))
DROPS = DropLayers("vda", "/t", "/b")


@each(
    ("step", "command", "arguments", "set_flags"),
    [
        (job_complete(JOB), "job-complete", {"id": JOB}, "final"),
        (end_copy(JOB), "block-job-cancel", {"device": JOB, "force": False}, "final"),
        (job_finalize(JOB), "job-finalize", {"id": JOB}, "final"),
        (job_cancel(JOB), "job-cancel", {"id": JOB}, ""),
        (job_dismiss(JOB), "job-dismiss", {"id": JOB}, ""),
    ],
)
def test_what_is_sent_to_a_job_is_rolled_back_by_nothing(
    step: Step, command: str, arguments: dict[str, object], set_flags: str
) -> None:
    assert (step.on, step.command, step.arguments) == ("qmp", command, arguments)
    assert (flags(step), step.undo, step.effect, step.job_id) == (set_flags, (), None, JOB)


def test_a_wait_sends_nothing_and_says_what_it_waits_for() -> None:
    step = await_job(JOB, "ready")
    assert (step.on, step.command, step.arguments) == ("wait", "await-job", {"id": JOB, "until": "ready"})
    assert (flags(step), step.undo, step.job_id) == ("", (), JOB)


def test_a_pivot_moves_the_root_where_it_is_known() -> None:
    assert job_complete(JOB, AS_BASE).effect == AS_BASE


def test_a_stream_dismisses_itself_and_takes_the_layers_out() -> None:
    step = block_stream(
        job=JOB, node="t", base_node="b", backing="b.qcow2", on_error="report", speed=3, effect=DROPS
    )
    assert (step.on, step.command) == ("qmp", "block-stream")
    assert step.arguments == {
        "job-id": JOB,
        "device": "t",
        "base-node": "b",
        "backing-file": "b.qcow2",
        "on-error": "report",
        "speed": 3,
        "auto-finalize": False,
    }
    assert (flags(step), step.undo, step.effect, step.job_id) == ("writes", CANCELLED, DROPS, JOB)


def test_a_stream_that_leaves_no_backing_file_names_no_base() -> None:
    effect = DropLayers("vda", "/t", None)
    step = block_stream(
        job=JOB, node="t", base_node=None, backing=None, on_error="report", speed=0, effect=effect
    )
    assert not {"base-node", "backing-file"} & set(step.arguments)


def commit(effect: DropLayers | Later) -> Step:
    return block_commit(
        job=JOB,
        root="r",
        top_node="t",
        base_node="b",
        backing=None,
        on_error="stop",
        speed=0,
        effect=effect,
    )


def test_a_commit_waits_to_be_finalized() -> None:
    step = commit(DROPS)
    assert (step.on, step.command) == ("qmp", "block-commit")
    assert step.arguments == {
        "job-id": JOB,
        "device": "r",
        "top-node": "t",
        "base-node": "b",
        "on-error": "stop",
        "speed": 0,
        "auto-finalize": False,
        "auto-dismiss": False,
    }
    assert (flags(step), step.effect) == ("writes", DROPS)
    assert step.undo == (*CANCELLED, job_dismiss(JOB))


def test_a_commit_of_the_active_layer_waits_at_ready_and_changes_nothing_until_then() -> None:
    step = commit(Later(AS_BASE))
    assert "auto-finalize" not in step.arguments
    assert (flags(step), step.effect) == ("writes", Later(AS_BASE))


def test_a_mirror_writes_into_no_layer_and_moves_the_root_when_it_is_completed() -> None:
    step = mirror_job(
        job=JOB,
        root="r",
        replaces=None,
        copy=COPY,
        sync="top",
        opens="absolute-paths",
        on_error="report",
        speed=0,
    )
    assert (step.on, step.command) == ("qmp", "drive-mirror")
    assert step.arguments == {
        "job-id": JOB,
        "device": "r",
        "target": "/c",
        "format": "raw",
        "node-name": "copy",
        "sync": "top",
        "mode": "absolute-paths",
        "on-source-error": "report",
        "on-target-error": "report",
        "speed": 0,
        "auto-dismiss": False,
    }
    assert (flags(step), step.effect) == ("", Later(MoveRoot(COPY)))
    assert step.undo == (*CANCELLED, job_dismiss(JOB))


def test_a_mirror_onto_an_existing_file_says_so_and_names_what_it_replaces() -> None:
    step = mirror_job(
        job=JOB,
        root="thr",
        replaces="f1",
        copy=COPY,
        sync="top",
        opens="existing",
        on_error="ignore",
        speed=0,
    )
    assert (step.arguments["mode"], step.arguments["replaces"]) == ("existing", "f1")


@each(("itself", "undo"), [(False, (*CANCELLED, job_dismiss(JOB))), (True, CANCELLED)])
def test_a_job_that_was_taken_over_is_cancelled_as_one_that_was_started(
    *, itself: bool, undo: tuple[Step, ...]
) -> None:
    step = adopt_job(JOB, dismisses_itself=itself)
    assert (step.on, step.command, step.arguments) == ("wait", "adopt-job", {"id": JOB})
    assert (flags(step), step.undo, step.effect) == ("", undo, None)
