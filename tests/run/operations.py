"""Operations to run on a fake machine: one of each kind, and what is there before and after."""

from __future__ import annotations

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from qmpsnap.model.graph import InternalSnapshot
from qmpsnap.model.record import IntentRecord
from qmpsnap.plan.intent import Checkpoint, Commit, Delete, Mirror, Snapshot, Stream
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import FakeTarget
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from qmpsnap.vm import VM
from tests.plan.scenes import with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.step import Step
    from qmpsnap.plan.intent import Intent
    from qmpsnap.plan.plan import Plan

OLD = (InternalSnapshot("1", "old"),)
MACHINE = graph(chain("base <- s1 <- s2*"), with_layer(chain("data*", name="vdb"), 0, snapshots=OLD))
FILES = {
    "vda": ("/images/s2.qcow2", "/images/s1.qcow2", "/images/base.qcow2"),
    "vdb": ("/images/data.qcow2",),
}
COPY = "/images/copy.qcow2"

INTENTS: dict[str, Intent] = {
    "snapshot": Snapshot("n1"),
    "snapshot-internal": Snapshot("n1", inside=True),
    "delete": Delete("old"),
    "checkpoint-internal": Checkpoint("n1", "internal"),
    "checkpoint-by-jobs": Checkpoint("n1", "internal", via="jobs"),
    "stream": Stream("vda", "base"),
    "commit": Commit("vda", "s1", "base"),
    "commit-pivot": Commit("vda"),
    "commit-keep": Commit("vda", keep_overlay=True),
    "mirror-pivot": Mirror("vda", COPY, "pivot", "top"),
    "mirror-finish": Mirror("vda", COPY, "finish"),
}
UNSEEN: dict[str, Intent] = {
    "unseen-snapshot": Snapshot("n1"),
    "unseen-mirror": Mirror("vda", COPY, "pivot"),
}
CASES = INTENTS | UNSEEN

# The steps of each case's plan. Stopped before what follows |, it is taken back; later it is brought to its
# end. What follows || only puts things away.
COURSES = {
    "snapshot": "write-record create-overlay create-overlay | transaction || keep-moment",
    "snapshot-internal": "| transaction",
    "delete": "| blockdev-snapshot-delete-internal-sync",
    "checkpoint-internal": "write-record | human-monitor-command || finish-record",
    "checkpoint-by-jobs": "write-record | snapshot-save await-job job-dismiss || finish-record",
    "stream": "write-record block-stream await-job human-monitor-command | job-finalize await-job "
    "human-monitor-command || finish-record",
    "commit": "write-record block-commit await-job human-monitor-command | job-finalize await-job "
    "human-monitor-command job-dismiss || retire-file finish-record",
    "commit-pivot": "write-record block-commit await-job | job-complete await-job job-dismiss || retire-file "
    "retire-file finish-record",
    "commit-keep": "write-record block-commit await-job | block-job-cancel await-job job-dismiss",
    "mirror-pivot": "write-record create-file drive-mirror await-job | job-complete await-job job-dismiss || "
    "finish-record",
    "mirror-finish": "write-record create-file drive-mirror await-job | block-job-cancel await-job "
    "finish-record job-dismiss",
    "unseen-snapshot": "blockdev-add blockdev-add | transaction",
    "unseen-mirror": "blockdev-add drive-mirror await-job | job-complete await-job job-dismiss",
}


def tidying(case: str) -> int:
    """How many steps come before those that only put things away."""
    return len(COURSES[case].partition("||")[0].replace("|", "").split())


def turn(case: str) -> int:
    """How many steps can be taken back: the one that follows has no way back."""
    return len(COURSES[case].partition("|")[0].split())


def machine(case: str) -> FakeTarget:
    """A fake machine for that case."""
    return FakeTarget(MACHINE, files=FakeFiles(MACHINE, shared=case in INTENTS), commands=COMMANDS)


def vm_of(fake: FakeTarget) -> VM:
    """The machine as an embedder holds it."""
    return VM(fake)


async def plan_of(case: str, fake: FakeTarget) -> Plan:
    """The case's plan on the machine as it is now."""
    return await vm_of(fake).plan(CASES[case])


@functools.cache
def known_plan(case: str) -> Plan:
    """The same plan without a loop: for parametrizing over its steps."""

    async def make() -> Plan:
        return await plan_of(case, machine(case))

    with ThreadPoolExecutor(1) as thread:  # a loop may run here: the test's
        return thread.submit(lambda: asyncio.run(make())).result()


def writes(step: Step) -> bool:
    """Whether the step begins to write into a layer that is there already."""
    return step.command in {"block-commit", "block-stream"}


def intents(fake: FakeTarget) -> list[str]:
    """Ids of the intent records that lie about."""
    return [record.id for record in fake.files.records if isinstance(record, IntentRecord)]


def inside(machine: Graph) -> dict[str, list[str]]:
    """Names of the internal snapshots in each disk's active layer."""
    return {name: [one.name for one in disk.active.snapshots] for name, disk in machine.disks.items()}


def chains_after(plan: Plan) -> dict[str, tuple[str, ...]]:
    assert plan.after is not None
    return plan.after.chains()


async def check_nothing_is_left(fake: FakeTarget, *, started_commit: str = "") -> None:
    """Chains, files and jobs are as in the beginning; a commit that began keeps its record."""
    assert fake.state.chains() == FILES
    assert inside(fake.state) == inside(MACHINE)
    assert fake.files.names == machine("snapshot").files.names
    assert set(fake.state.nodes) == set(MACHINE.nodes)
    assert await fake.jobs() == ()
    assert fake.watched == 0
    assert intents(fake) == ([started_commit] if started_commit else [])


async def all_wait() -> None:
    """Let every other task run until it waits for something that does not come.

    `anyio.wait_all_tasks_blocked` does so too, but looks again only after a tenth of a second.
    """
    for _ in range(1000):
        await asyncio.sleep(0)
