from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.files import FileFact, Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Graph
from qmpsnap.model.header import Header
from qmpsnap.model.layer_stamps import (
    WrittenLayer,
    frozen_layers,
    layers_written,
    renewed,
    stamp_of,
    with_renewals,
    written_after,
    written_layers,
)
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import Stage
from qmpsnap.testing.drawing import graph
from tests.each import each
from tests.model.records import TIME, committing, mirroring, streaming

if TYPE_CHECKING:
    from qmpsnap.model.step import Step

BASE, S1, S2, S3 = (f"/images/{name}.qcow2" for name in ("base", "s1", "s2", "s3"))
NS = 1_714_564_800_000_000_000  # 2024-05-01T12:00:00Z
RAW = stamp_of(None, modified_ns=1, inode=1)[4:]
THEN = {BASE: f"100-1-{RAW}", S1: f"200-2-{RAW}"}
MOMENT = MomentRecord(
    "m", "n1", TIME, {"vda": S2}, {"vda": S1}, {"vda": (S1, BASE)}, directory="/r", stamps=THEN
)


def operation(start: Step, *, folded: tuple[str, ...] = (), **fields: object) -> IntentRecord:
    record = IntentRecord("job", "op", TIME, stages=(Stage("go", (start,)),), folded=folded)
    return replace(record, **fields)


def fact(modified_ns: int, inode: int) -> FileFact:
    return FileFact("regular", inode=inode, modified=modified_ns / 1e9, modified_ns=modified_ns)


def seen(*records: IntentRecord, **files: tuple[int, int]) -> Files:
    """What was read: of each file the time in ns, and the inode."""
    facts = {f"/images/{name}.qcow2": fact(*each) for name, each in files.items()}
    return Files(shared=True, files=Frozen(facts), records=records)


@each(
    ("now", "written"),
    [
        ("1000-7-aa", False),
        ("1001-7-aa", True),
        ("999-7-aa", False),  # after a loss of power, or set back by hand
        ("1001-8-aa", False),  # a copy
        ("1001-7-bb", False),  # a new name of the backing file
        ("10000000000000000000-7-aa", True),
    ],
)
def test_a_file_was_written_to_if_it_is_the_same_and_newer(now: str, written: bool) -> None:
    assert written_after("1000-7-aa", now) is written


def test_a_stamp_has_the_time_the_inode_and_what_the_header_says_of_the_backing_file() -> None:
    headers = [Header("qcow2", 1, BASE, "qcow2"), Header("qcow2", 1, BASE, "raw"), Header("qcow2", 1)]
    stamps = [stamp_of(header, modified_ns=NS, inode=42) for header in (*headers, None)]
    assert {stamp[:-9] for stamp in stamps} == {"1714564800000000000-42"}
    assert len(set(stamps[:3])) == 3
    assert stamps[2] == stamps[3]
    more = stamp_of(replace(headers[0], virtual_size=2), modified_ns=NS, inode=42)
    assert more == stamps[0]


def test_layers_beneath_are_frozen_where_qemu_has_them_read_only() -> None:
    drawn = graph(vda="base <- s1 <- s2*")
    assert frozen_layers(drawn) == (S1, BASE)
    disk = drawn.disks["vda"]
    written = replace(disk, layers=(*disk.layers[:2], replace(disk.layers[2], read_only=False)))
    assert frozen_layers(graph(written)) == (S1,)  # copy-on-read
    other = replace(disk, layers=(disk.layers[0], replace(disk.layers[1], format="vmdk"), disk.layers[2]))
    assert frozen_layers(graph(other)) == (BASE,)


def test_a_layer_is_not_frozen_if_another_node_writes_to_its_file() -> None:
    drawn = graph(vda="base <- s1*")
    node = replace(next(iter(drawn.nodes.values())), name="other", driver="qcow2", file=BASE, read_only=False)
    nodes = {**drawn.nodes, "other": node}
    assert frozen_layers(Graph(disks=drawn.disks, nodes=Frozen(nodes))) == ()
    protocol = {**nodes, "other": replace(node, driver="file")}  # -blockdev leaves it as it was
    assert frozen_layers(Graph(disks=drawn.disks, nodes=Frozen(protocol))) == (BASE,)


@each(
    ("start", "layers"),
    [
        (streaming("job", above=S2, base=BASE), {S2}),
        (streaming("job", above=S2, base=None), {S2}),
        (committing("job", above=S3, base=S1), {S3, S1}),
        (committing("job", base=BASE), {BASE}),
        (mirroring("job", "/target.qcow2"), set()),
    ],
)
def test_an_operation_writes_to_the_layers_of_its_job(start: Step, layers: set[str]) -> None:
    assert layers_written(operation(start)) == layers


def test_an_operation_names_the_moments_whose_layers_it_writes_to() -> None:
    commit = operation(committing("job", above=S2, base=BASE), folded=(S1,))
    other = replace(MOMENT, id="o", stamps={S1: f"200-2-{RAW}"})
    assert with_renewals(commit, (MOMENT, other)) == replace(commit, renews={"m": "/r"})
    assert with_renewals(commit, (other,)) == commit


def test_a_moment_gets_new_stamps_of_what_our_operation_has_written() -> None:
    """A commit of s1 into base, which holds the moment then."""
    moved = replace(MOMENT, covered={"vda": BASE}, chains={"vda": (BASE,)})
    before = {BASE: f"100-1-{RAW}", S1: f"200-2-{RAW}"}
    assert renewed(moved, before, {BASE: f"900-1-{RAW}"}).stamps == {BASE: f"900-1-{RAW}"}
    assert renewed(moved, before, {BASE: ""}).stamps == {}  # it has bitmaps by now


@each(("file", "stamp"), [(BASE, f"101-1-{RAW}"), (S1, f"201-2-{RAW}")])
def test_a_moment_keeps_its_stamps_if_others_had_written_before_us(file: str, stamp: str) -> None:
    """Its data may be in another layer by now, and is no better there."""
    moved = replace(MOMENT, covered={"vda": BASE}, chains={"vda": (BASE,)})
    assert (
        renewed(moved, {BASE: f"100-1-{RAW}", S1: f"200-2-{RAW}", file: stamp}, {BASE: f"900-1-{RAW}"})
        == moved
    )


def test_a_moment_that_was_copied_gets_stamps_of_the_copies() -> None:
    now = {BASE: f"900-11-{RAW}"}
    assert renewed(MOMENT, {BASE: f"500-11-{RAW}"}, now).stamps == {BASE: f"900-11-{RAW}", S1: f"200-2-{RAW}"}


def test_layers_that_were_written_to_are_found() -> None:
    files = seen(base=(NS, 1), s1=(200, 2))
    found = WrittenLayer("n1", TIME, "vda", BASE, "2024-05-01T12:00:00+00:00", 100)
    assert written_layers(MOMENT, files) == (found,)
    assert written_layers(replace(MOMENT, stamps={}), files) == ()  # a record of before there were any


@each(
    "files",
    [
        seen(base=(100, 1), s1=(200, 2)),
        seen(base=(NS, 11), s1=(NS, 12)),  # copies
        seen(base=(99, 1), s1=(199, 2)),
        seen(),  # nothing was read
    ],
)
def test_nothing_is_found_where_nothing_is_certain(files: Files) -> None:
    assert written_layers(MOMENT, files) == ()


def test_a_disk_on_which_the_moment_is_lost_or_deleted_is_passed_over() -> None:
    files = seen(base=(NS, 1), s1=(NS, 2))
    assert written_layers(replace(MOMENT, lost=("vda",)), files) == ()
    assert written_layers(replace(MOMENT, deleted_from=("vda",)), files) == ()
    assert written_layers(replace(MOMENT, deleted=True), files) == ()


def test_what_an_operation_of_ours_is_writing_is_not_found() -> None:
    commit = operation(
        committing("job", above=S2, base=BASE), stamps={BASE: f"100-1-{RAW}"}, renews={"m": "/r"}
    )
    assert written_layers(MOMENT, seen(commit, base=(NS, 1))) == ()
    # Before it began, somebody else had written.
    late = replace(commit, stamps={BASE: f"101-1-{RAW}"})
    assert [layer.file for layer in written_layers(MOMENT, seen(late, base=(NS, 1)))] == [BASE]
    # It does not write there.
    other = replace(commit, stamps={S2: f"300-3-{RAW}"})
    assert [layer.file for layer in written_layers(MOMENT, seen(other, base=(NS, 1)))] == [BASE]


def test_a_layer_is_found_under_its_canonical_name() -> None:
    facts = {"/real/base": fact(NS, 1)}
    files = Files(shared=True, images=Frozen(facts), files=Frozen({BASE: replace(fact(NS, 1), real="/x")}))
    assert [layer.file for layer in written_layers(MOMENT, files)] == [BASE]
    moment = replace(MOMENT, chains={"vda": (S1, "/real/base")}, stamps={"/real/base": f"1-1-{RAW}"})
    assert [layer.file for layer in written_layers(moment, files)] == ["/real/base"]
