"""What a child prints, by children that print."""

from __future__ import annotations

from pathlib import Path

from qmpsnap.run.process import start_qemu
from tests.run.test_process import SERVE, fake_qemu


async def test_output_tail_is_the_end_of_what_was_written_and_the_log_holds_all(tmp_path):
    talkative = fake_qemu("print('a' * 300_000, flush=True); print('the end', flush=True); " + SERVE)
    async with start_qemu(talkative, log=tmp_path / "log") as process:
        pass
    assert process.output_tail.endswith("a\nthe end")
    assert len(process.output_tail) <= 16 * 1024
    assert (tmp_path / "log").stat().st_size == 300_000 + 1 + len("the end\n")


async def test_output_is_kept_when_the_disk_of_the_log_is_full(caplog):
    talkative = fake_qemu("print('the end', flush=True); " + SERVE)
    async with start_qemu(talkative, log=Path("/dev/full")) as process:
        pass
    assert process.output_tail == "the end"
    (failed,) = [
        record for record in map(vars, caplog.records) if record.get("event") == "process.log_failed"
    ]
    assert (failed["file"], failed["error"]) == ("/dev/full", "No space left on device")
