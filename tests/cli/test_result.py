from __future__ import annotations

from qmpsnap.cli.result import result_lines
from qmpsnap.run.outcome import Done
from tests.each import each


@each("op", ["checkpoint", "checkpoint-internal"])
def test_lines_of_a_checkpoint_say_how_much_state_and_how_long_the_guest_stood(op):
    done = Done(op, {}, standstill_s=0.25, elapsed_s=0.5, bytes=91 << 20)
    assert result_lines(done) == [
        f"{op}: done in 500 ms, VM state of 91 MiB, the guest was paused for 250 ms"
    ]


def test_lines_of_a_checkpoint_of_a_paused_guest_tell_of_no_standstill():
    done = Done("checkpoint", {}, standstill_s=0.0, elapsed_s=0.5, bytes=91 << 20)
    assert result_lines(done) == ["checkpoint: done in 500 ms, VM state of 91 MiB"]


def test_lines_of_a_job_say_what_was_copied_and_how_long_io_stood():
    done = Done("mirror", {}, standstill_s=0.0, elapsed_s=0.5, bytes=91 << 20)
    assert result_lines(done) == [
        "mirror: done in 500 ms, 91 MiB copied, the guest's I/O was paused for 0 ms"
    ]


def test_lines_tell_everything_that_the_result_knows():
    done = Done(
        "commit", {"vda": ("/d/b", "/d/a")}, {"vda": "/d/b"}, None, 0.5,
        left=("qmpsnap qmp blockdev-del X",), invalid=("/d/c.invalid",), notes=("a note",),
    )  # fmt: skip
    assert result_lines(done) == [
        "commit: done in 500 ms",
        "vda: [a] <- [b*]",
        "invalid, no longer holds its snapshot: /d/c.invalid",
        "unused node, not created by qmpsnap; remove it with: qmpsnap qmp blockdev-del X",
        "note: a note",
        "from now on, start vda from /d/b",
    ]


def test_lines_of_a_stopped_operation_tell_of_no_time():
    assert result_lines(Done("stream", {})) == ["stream: stopped"]
