from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, InvalidTarget, NotInChain, Refused, Unsupported
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Bitmap, Filter, Graph, InternalSnapshot, Node
from qmpsnap.model.memory import MemoryFact
from qmpsnap.plan.commands.state import loadvm
from qmpsnap.plan.intent import Checkpoint, Intent, Revert, Snapshot
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.scenes import planned, unseen, with_layer

MIB = 1024 * 1024
VDA = with_layer(chain("a*"), 0, snapshots=(InternalSnapshot("1", "c1", 4096),))
VDB = with_layer(chain("b*", name="vdb"), 0, snapshots=(InternalSnapshot("1", "c1"),))
GOOD = graph(VDA, VDB)
BACK, BY_JOBS = Revert("c1"), Revert("c1", via="jobs")
REMOVE = """qmpsnap qmp block-dirty-bitmap-remove '{"node": "vdb-b", "name": "b0"}'"""


def tracked(*bitmaps: Bitmap) -> Graph:
    return graph(VDA, with_layer(VDB, 0, bitmaps=bitmaps))


def beside(*nodes: Node) -> Graph:
    return graph(VDA, VDB, nodes=nodes)


READ_ONLY = graph(VDA, replace(VDB, read_only=True))
FLEECED = beside(Node("cbw", "copy-before-write", "/images/b.qcow2"))
STOOD_ON = beside(Node("past", "qcow2", "/images/past.qcow2", read_only=True, backing="/images/b.qcow2"))

REFUSED: dict[str, tuple[Graph, type[Refused], str, str]] = {
    "bitmap": (
        tracked(Bitmap("b0")),
        Unsupported,
        r"vdb \(/images/b\.qcow2\) has the dirty bitmap 'b0': QEMU cannot revert to a snapshot",
        f"remove it; the next backup is then a full one: {REMOVE}",
    ),
    "persistent": (tracked(Bitmap("b0", persistent=True)), Unsupported, "dirty bitmap 'b0'", REMOVE),
    "in use": (
        tracked(Bitmap("b0", persistent=True, inconsistent=True)),
        Unsupported,
        "'b0', which was in use when QEMU ended",
        REMOVE,
    ),
    "busy": (
        tracked(Bitmap("b0", busy=True)),
        Unsupported,
        "dirty bitmap 'b0'",
        f"end the export or the backup that uses it, then: {REMOVE}",
    ),
    "nameless": (tracked(Bitmap("")), Unsupported, "a dirty bitmap without a name", "copy-before-write node"),
    "read-only": (READ_ONLY, NotInChain, "vdb has 'c1' but is attached read-only", "--leave vdb"),
    "fleecing": (
        FLEECED,
        Busy,
        r"node 'cbw' \(copy-before-write\) reads vdb",
        """qmpsnap qmp blockdev-del '{"node-name": "cbw"}'""",
    ),
    "overlay": (
        STOOD_ON,
        Busy,
        r"node 'past' \(qcow2\) reads vdb",
        """qmpsnap qmp blockdev-del '{"node-name": "past"}'""",
    ),
}


@each("case", REFUSED)
def test_revert_inside_images_refuses_what_would_fail_half_way(case: str) -> None:
    drawn, error, text, hint = REFUSED[case]
    for intent in (BACK, BY_JOBS):
        with pytest.raises(Refused, match=text) as caught:
            planned(intent, drawn)
        assert type(caught.value) is error
        assert hint in caught.value.hint


def test_revert_inside_images_goes_where_a_disk_in_the_way_is_left() -> None:
    left = Revert("c1", leave=("vdb",))
    for drawn in (tracked(Bitmap("b0")), FLEECED):
        (step,) = (one for one in planned(left, drawn).steps if one.command == "snapshot-load")
        assert step.arguments["devices"] == ["vda-a"]
    assert loadvm("c1", running=True) in planned(left, READ_ONLY).steps  # which passes a read-only disk over


def test_revert_inside_images_does_not_mind_a_bitmap_of_a_layer_below() -> None:
    below = with_layer(chain("base <- b*", name="vdb"), 1, bitmaps=(Bitmap("b0"),))
    drawn = graph(VDA, with_layer(below, 0, snapshots=(InternalSnapshot("1", "c1"),)))
    assert loadvm("c1", running=True) in planned(BACK, drawn).steps


def sized(then: int | None, *, free_bytes: int = 1 << 30) -> FakeFiles:
    files = FakeFiles(GOOD)
    if then is not None:
        files.memories["/images/b.qcow2"] = MemoryFact("/images/b.qcow2", 4096, sizes={"c1": then})
    files.directories["/images"] = DirFact("/images", exists=True, writable=True, free_bytes=free_bytes)
    return files


EXPORTED = a_machine(GOOD, exported=frozenset({"vdb-b"}))


def test_revert_inside_images_changes_the_size_of_a_disk_when_there_is_room() -> None:
    assert loadvm("c1", running=True) in planned(BACK, GOOD, files=sized(32 * MIB)).steps
    with pytest.raises(InvalidTarget, match=f"vdb has {64 * MIB} bytes, it had {32 * MIB} at 'c1'") as caught:
        planned(BACK, GOOD, files=sized(32 * MIB, free_bytes=512 * 1024))
    assert caught.value.hint == "free some space there"


def test_revert_inside_images_needs_no_room_for_a_disk_that_keeps_its_size() -> None:
    # A guest on a full disk is one that somebody wants to bring back.
    files = sized(64 * MIB)
    files.directories["/images/a.qmpsnap"] = DirFact("/images/a.qmpsnap", exists=False, writable=False)
    files.directories["/images"] = DirFact("/images", exists=True, writable=True, free_bytes=0)
    assert loadvm("c1", running=True) in planned(BACK, GOOD, files=files).steps


def test_revert_inside_images_refuses_another_size_under_an_export() -> None:
    assert loadvm("c1", running=True) in planned(BACK, GOOD, files=sized(64 * MIB), machine=EXPORTED).steps
    for files in (sized(32 * MIB), sized(None), unseen(GOOD)):
        with pytest.raises(Busy, match="node 'vdb-b' of vdb is exported, which fixes its size") as caught:
            planned(BACK, GOOD, files=files, machine=EXPORTED)
        assert caught.value.hint.startswith(
            """end the export first: qmpsnap qmp block-export-del '{"id": "ID"}'; its ID is"""
        )


def test_checkpoint_inside_images_says_what_is_in_the_way_back() -> None:
    one, other = planned(Checkpoint("c2", "internal"), tracked(Bitmap("b0"), Bitmap("b1"))).notes
    assert one == "vdb has the dirty bitmap 'b0': QEMU reverts to 'c2' only after it is removed"
    assert other == one.replace("b0", "b1")
    assert planned(Checkpoint("c2", "internal"), GOOD).notes == ()


@each(
    ("intent", "hint"),
    [
        (Checkpoint("c2", "internal"), "use --mode in-place, or leave the disk out: --leave vdb"),
        (Snapshot("c2", inside=True), "take an external snapshot, which works with every kind of disk"),
    ],
)
def test_nothing_is_kept_inside_an_image_with_an_external_data_file(intent: Intent, hint: str) -> None:
    drawn = graph(VDA, with_layer(VDB, 0, data_file="/images/b.data"))
    with pytest.raises(
        Unsupported, match=r"keeps its data in an external file \(/images/b\.data\)"
    ) as caught:
        planned(intent, drawn)
    assert caught.value.hint == hint


def test_revert_inside_images_does_not_mind_the_filters_of_the_disk_itself() -> None:
    throttled = replace(VDB, root="thr", filters=(Filter("thr", "throttle"),))
    steps = planned(BACK, graph(VDA, throttled)).steps
    assert [step.command for step in steps][1:2] == ["snapshot-load"]
