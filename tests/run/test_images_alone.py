"""Operations on images of a machine that is off: no guest, no devices, no human monitor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import QmpsnapError, Unsupported
from qmpsnap.plan.intent import Commit, Mirror, Snapshot, Stream
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake import refused
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_images import FakeImages
from qmpsnap.testing.fake_machine import IMAGE_COMMANDS
from tests.each import each
from tests.plan.scenes import planned
from tests.run.operations import vm_of

if TYPE_CHECKING:
    from qmpsnap.plan.intent import Intent

pytestmark = pytest.mark.timeout(60)

DISKS = graph(chain("base <- s1 <- s2*"), chain("data*", name="vdb"))
BASE, S1, S2, COPY = (f"/images/{name}.qcow2" for name in ("base", "s1", "s2", "copy"))
NEW = "/images/base.n1.qcow2"
JOB = "block-commit await-job blockdev-reopen job-finalize await-job blockdev-reopen"
COPIED = "await-job block-job-cancel await-job"
ENDED = "await-job job-complete await-job job-dismiss"

CASES: dict[str, tuple[Intent, str, tuple[str, ...]]] = {
    "snapshot": (
        Snapshot("n1", ("vda",)),
        "write-record create-overlay blockdev-add transaction keep-moment",
        (NEW, S2, S1, BASE),
    ),
    "snapshot-inside": (Snapshot("n1", inside=True), "transaction", (S2, S1, BASE)),
    "stream": (
        Stream("vda", "base"),
        f"write-record {JOB.replace('commit', 'stream')} finish-record",
        (S2, BASE),
    ),
    "stream-all": (
        Stream("vda"),
        f"write-record {JOB.replace('commit', 'stream')} finish-record",
        (S2,),
    ),
    "commit": (
        Commit("vda", "s1", "base"),
        f"write-record {JOB} job-dismiss retire-file finish-record",
        (S2, BASE),
    ),
    "commit-pivot": (
        Commit("vda"),
        f"write-record block-commit {ENDED} retire-file retire-file finish-record",
        (BASE,),
    ),
    "mirror-pivot": (
        Mirror("vda", COPY, "pivot"),
        (
            f"write-record write-record create-image blockdev-add blockdev-mirror {ENDED} finish-record "
            "finish-record"
        ),
        (COPY,),
    ),
    "mirror-top": (
        Mirror("vda", COPY, "pivot", "top"),
        f"write-record create-overlay blockdev-add blockdev-mirror {ENDED} finish-record",
        (COPY, S1, BASE),
    ),
    "mirror-finish": (
        Mirror("vda", COPY, "finish"),
        (
            f"write-record create-image blockdev-add blockdev-mirror {COPIED} blockdev-del finish-record "
            "job-dismiss"
        ),
        (S2, S1, BASE),
    ),
}


@each("case", CASES)
async def test_operation_is_done_without_a_guest(case: str) -> None:
    intent, steps, chain_after = CASES[case]
    fake = FakeImages(DISKS)
    vm = vm_of(fake)
    await vm.run(await vm.plan(intent))
    assert " ".join(step.command for step in fake.performed) == steps
    assert fake.state.disks["vda"].files == chain_after
    assert await fake.jobs() == ()
    assert (COPY in {node.file for node in fake.state.nodes.values()}) is (COPY in chain_after)


def arguments(fake: FakeImages, command: str) -> list[Any]:
    return [dict(step.arguments) for step in fake.performed if step.command == command]


async def test_snapshot_opens_the_overlay_by_itself_and_puts_it_on_the_layer() -> None:
    fake = FakeImages(DISKS)
    await vm_of(fake).snapshot("n1", disks=["vda"])
    node = fake.state.disks["vda"].root
    assert node.startswith("qmpsnap-")
    assert arguments(fake, "blockdev-add") == [
        {
            "driver": "qcow2",
            "node-name": node,
            "file": {"driver": "file", "filename": NEW},
            "discard": "unmap",
            "backing": None,
        }
    ]
    assert arguments(fake, "transaction") == [
        {"actions": [{"type": "blockdev-snapshot", "data": {"node": "vda-s2", "overlay": node}}]}
    ]


async def test_flush_opens_the_layer_again_as_it_is_at_that_time() -> None:
    fake = FakeImages(DISKS)
    await vm_of(fake).commit("vda", top="s1", base="base")
    base = {"driver": "qcow2", "node-name": "vda-base", "file": "vda-base-file", "backing": None}
    above = {
        "driver": "qcow2", "node-name": "vda-s2", "file": "vda-s2-file", "backing": "vda-base",
    }  # fmt: skip
    assert arguments(fake, "blockdev-reopen") == [
        {"options": [{**base, "read-only": False}]},
        {"options": [{**above, "read-only": False}]},
    ]


async def test_stream_leaves_a_layer_read_only_that_was_so() -> None:
    fake = FakeImages(DISKS)
    await vm_of(fake).stream("vda", into="s1")
    options = [each["options"][0] for each in arguments(fake, "blockdev-reopen")]
    assert [(each["read-only"], each["backing"]) for each in options] == [(False, "vda-base"), (True, None)]


@each("case", ["snapshot", "mirror-pivot", "mirror-top", "mirror-finish"])
async def test_what_was_made_and_opened_is_closed_and_removed_after_a_failure(case: str) -> None:
    intent, _, _ = CASES[case]
    fake = FakeImages(DISKS)
    before = (fake.state.chains(), set(fake.state.nodes), fake.files.names)
    fake.fail("transaction" if case == "snapshot" else "blockdev-mirror", refused("no"))
    with pytest.raises(QmpsnapError, match="no"):
        await vm_of(fake).run(await vm_of(fake).plan(intent))
    assert (fake.state.chains(), set(fake.state.nodes), fake.files.names) == before
    assert fake.files.records == []


def test_layer_whose_file_has_no_known_node_cannot_be_flushed() -> None:
    with pytest.raises(Unsupported, match="cannot be flushed") as caught:
        planned(Stream("vda"), DISKS, commands=IMAGE_COMMANDS)
    assert caught.value.feature == "flush of a layer"


@each("intent", [Snapshot("n1"), Mirror("vda", COPY, "pivot")])
def test_nothing_is_created_where_the_images_are_not_visible(intent: Intent) -> None:
    with pytest.raises(Unsupported, match="not visible from here, and a process"):
        planned(intent, DISKS, commands=IMAGE_COMMANDS, files=FakeFiles(DISKS, shared=False))
    assert planned(intent, DISKS, files=FakeFiles(DISKS, shared=False)).steps
