"""What is asked for a diagnosis; what the rules find is tested with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.entry import offline
from qmpsnap.errors import Busy
from qmpsnap.model.job import Job, JobStatus
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.headers import qcow2_bytes
from tests.run.operations import MACHINE, vm_of

if TYPE_CHECKING:
    from pathlib import Path

ENDED = Job("theirs", "mirror", JobStatus.CONCLUDED)
PAUSED = Job("theirs", "mirror", JobStatus.PAUSED, paused=True)


class Jobs(FakeTarget):
    """A machine whose jobs are different each time."""

    answers: tuple[tuple[Job, ...], ...] = ()
    asked = 0

    async def jobs(self, *, after_graph: bool = False) -> tuple[Job, ...]:
        del after_graph
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


async def found(fake: FakeTarget) -> list[tuple[str, str]]:
    return [(one.code, one.subject) for one in await vm_of(fake).diagnose()]


async def test_a_machine_that_is_well_is_looked_at_once() -> None:
    fake = Jobs(MACHINE)
    fake.answers = ((),)
    assert (await found(fake), fake.asked) == ([], 1)


async def test_what_is_gone_a_moment_later_is_not_reported() -> None:
    fake = Jobs(MACHINE)
    fake.answers = ((PAUSED,), ())
    assert (await found(fake), fake.asked) == ([], 2)
    fake.answers = ((ENDED,),)
    assert await found(fake) == [("job-concluded", "theirs")]


async def test_a_job_that_forbids_to_read_the_graph_is_the_trouble() -> None:
    class Crashes(Jobs):
        async def graph(self) -> None:  # type: ignore[override]
            raise Busy("a concluded stream job", node="", job_id="theirs")

    fake = Crashes(MACHINE)
    fake.answers = ((ENDED,),)
    assert await found(fake) == [("job-concluded", "theirs")]
    fake.answers = ((),)
    with pytest.raises(Busy):
        await found(fake)


async def test_of_a_machine_that_is_off_each_chain_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "good.qcow2").write_bytes(qcow2_bytes())
    (tmp_path / "bad.qcow2").write_bytes(qcow2_bytes(backing="gone.qcow2", backing_format="qcow2"))
    disks = {"vda": tmp_path / "bad.qcow2", "vdb": tmp_path / "good.qcow2"}
    async with offline(disks, read_only=True) as vm:
        findings = await vm.diagnose()
    assert ("backing-missing", f"{tmp_path}/bad.qcow2") in [(one.code, one.subject) for one in findings]
    async with offline(
        {"vda": tmp_path / "good.qcow2", "vdb": tmp_path / "good.qcow2"}, read_only=True
    ) as vm:
        (twice, *_) = await vm.diagnose()
    assert (twice.code, twice.subject) == ("image-refused", "vda, vdb")


async def test_a_fake_without_files_is_asked_nothing_about_them() -> None:
    assert await found(FakeTarget(graph(vda="base*"))) == []
