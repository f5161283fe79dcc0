from __future__ import annotations

from qmpsnap.cli.result import result_lines
from qmpsnap.run.outcome import Done
from tests.each import each


@each(
    ("op", "verb"),
    [
        ("checkpoint", "checkpoint"),
        ("checkpoint-internal", "checkpoint --mode internal"),
        ("revert-internal", "revert"),
    ],
)
def test_lines_of_a_checkpoint_say_how_much_state_and_how_long_the_guest_stood(op, verb):
    done = Done(op, {}, standstill_s=0.25, elapsed_s=0.5, bytes=91 << 20)
    assert result_lines(done) == [
        f"{verb}: done in 500 ms, VM state of 91 MiB, the guest was paused for 250 ms"
    ]


def test_lines_of_a_checkpoint_of_a_paused_guest_tell_of_no_standstill():
    done = Done("checkpoint", {}, standstill_s=0.0, elapsed_s=0.5, bytes=91 << 20)
    assert result_lines(done) == ["checkpoint: done in 500 ms, VM state of 91 MiB"]


def test_lines_of_a_job_say_what_was_copied_and_how_long_io_stood():
    done = Done("mirror", {}, standstill_s=0.0, elapsed_s=0.5, bytes=91 << 20)
    assert result_lines(done) == [
        "mirror: done in 500 ms, 91 MiB processed, the guest's I/O was paused for 0 ms"
    ]


def test_lines_tell_everything_that_the_result_knows():
    done = Done(
        "commit", {"vda": ("/d/b", "/d/a")}, {"vda": "/d/b"}, None, 0.5,
        left=("qmpsnap qmp blockdev-del X",), invalid=("/d/c.invalid", "/d/e"), notes=("a note",),
    )  # fmt: skip
    assert result_lines(done) == [
        "commit: done in 500 ms",
        "vda: [a] <- [b*]",
        "invalid, no longer holds its snapshot (you can remove it): /d/c.invalid",
        "invalid, no longer holds its snapshot (do not use it): /d/e",
        "unused node, not created by qmpsnap; remove it with: qmpsnap qmp blockdev-del X",
        "note: a note",
        "from now on, start vda from /d/b",
    ]


@each(
    ("ended", "changed", "line"),
    [
        ("finished", True, "commit: done in 500 ms"),
        ("rolled-back", False, "commit: rolled back in 500 ms, nothing was changed"),
        ("rolled-back", True, "commit: rolled back in 500 ms"),  # of two parts
        ("partial", True, "commit: not completed in 500 ms"),
        ("unknown", True, "commit: left as it is in 500 ms"),
    ],
)
def test_lines_say_how_an_interrupted_operation_has_ended(ended, line, *, changed):
    assert result_lines(Done("commit", {}, elapsed_s=0.5, ended=ended, changed=changed)) == [line]


def test_lines_of_a_stopped_operation_and_of_another_client_s_tell_of_no_time():
    assert result_lines(Done("stream", {}, ended="cancelled")) == ["stream: stopped"]
    assert result_lines(Done("stream", {}, changed=False)) == ["stream: done"]


@each(
    ("done", "lines"),
    [
        (
            Done("prune", {"vda": ("/d/a",)}, elapsed_s=0.5, deleted=("one", "two")),
            ["prune: done in 500 ms", "deleted: one, two", "vda: [a*]"],
        ),
        (Done("prune", {"vda": ("/d/a",)}, changed=False), ["nothing to delete; nothing was changed"]),
        (
            Done("prune", {}, changed=False, notes=("vda still has 2 layers, not 1",)),
            ["nothing to delete; nothing was changed", "note: vda still has 2 layers, not 1"],
        ),
    ],
)
def test_lines_of_a_deletion_name_what_was_deleted_or_say_that_nothing_was(done, lines):
    assert result_lines(done) == lines


def test_lines_of_a_revert_name_the_snapshot():
    done = Done("revert-prepare", {}, elapsed_s=0.5)
    assert result_lines(done, "one") == ["revert to one: done in 500 ms"]
