from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from qmpsnap.model.files import Files
from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Bitmap, Graph
from qmpsnap.model.keeper import Keeper, KeeperState, KeptFor
from qmpsnap.model.layer_stamps import WrittenLayer
from qmpsnap.model.moments import Moment, MomentPart, Moments
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.diagnosis.rules import diagnose
from qmpsnap.testing.drawing import graph
from tests.each import each
from tests.model.records import STATE, TIME
from tests.plan.diagnosis.look import BASE, CHAIN, S1, codes, commit_left, facts, only
from tests.plan.scenes import with_layer

KEEPER = "/images/base.web-0a1b2c3d.template.qcow2"
BROKEN = Bitmap("b0", persistent=True, inconsistent=True)


def bitmaps(index: int, *found: Bitmap) -> Graph:
    """The chain, with bitmaps in one of its layers."""
    return graph(with_layer(CHAIN.disks["vda"], index, bitmaps=found))


def moments(*found: Moment) -> Moments:
    return Moments(found, Frozen())


def test_an_inconsistent_bitmap_is_removed() -> None:
    assert codes(facts(bitmaps(0, Bitmap("good", persistent=True)))) == []
    found = only(facts(bitmaps(0, BROKEN)))
    assert (found.code, found.subject) == ("bitmap-inconsistent", "vda: b0")
    assert found.remedy == (
        "qmpsnap", "qmp", "block-dirty-bitmap-remove", '{"node": "vda-s2", "name": "b0"}',
    )  # fmt: skip
    found = only(facts(bitmaps(1, BROKEN)))
    assert (found.remedy, "-i" in found.advice) == ((), True)
    found = only(facts(bitmaps(1, BROKEN), status=None))
    assert found.remedy == ("qemu-img", "bitmap", "--remove", "-f", "qcow2", S1, "b0")


def test_a_bitmap_in_use_is_no_trouble() -> None:
    busy = bitmaps(0, Bitmap("b0", busy=True), Bitmap("", busy=True))
    found = only(facts(busy))
    assert (found.code, found.is_trouble, found.remedy) == ("bitmap-busy", False, ())
    assert "query-block-exports" in found.advice


def test_a_commit_that_kept_its_overlay_is_completed() -> None:
    found = only(facts(operations=(commit_left(kept=True),)))
    assert (found.code, found.subject) == ("layer-invalid", "vda")
    assert found.remedy == ("qmpsnap", "commit", "vda", "--base", BASE)
    assert codes(facts(operations=(replace(commit_left(kept=True), live=True),))) == []


def test_a_commit_that_was_stopped_is_repeated() -> None:
    record = commit_left(kept=False)
    found = only(facts(operations=(record,), vanished=Frozen({record.id: "gone"})))
    assert (found.code, found.remedy) == (
        "operation-left",
        ("qmpsnap", "commit", "vda", "--top", S1, "--base", BASE),
    )


def test_a_snapshot_that_no_file_holds_is_deleted() -> None:
    lost = Moment("n1", "external", TIME, (MomentPart("vda", BASE, invalid=True),))
    found = only(facts(moments=moments(lost)))
    assert (found.code, found.remedy) == ("snapshot-lost", ("qmpsnap", "delete", "n1"))
    half = Moment("n1", "external", TIME, (*lost.held, MomentPart("vdb", BASE)))
    assert codes(facts(moments=moments(half))) == []  # of the other disk it can be read
    for record in (commit_left(kept=False), commit_left(kept=True)):  # what ends these decides
        assert "snapshot-lost" not in dict(codes(facts(moments=moments(lost), operations=(record,))))


def test_layers_to_which_others_have_written_are_named_with_their_snapshots() -> None:
    def moment(name: str, file: str, was: int, *, invalid: bool = False) -> Moment:
        written = WrittenLayer(name, TIME, "vda", file, "2024-05-02T12:00:00+00:00", was)
        return Moment(name, "external", TIME, (MomentPart("vda", file, written=(written,), invalid=invalid),))

    found = only(facts(moments=moments(moment("n1", BASE, 7), moment("n2", BASE, 9))))
    assert (found.code, found.subject, found.remedy) == ("layer-written", BASE, ())
    assert found.cause == (
        "it was written to at 2024-05-02 12:00:00 UTC, and not by qmpsnap, after these snapshots that are "
        "read from it: 'n1' (2024-05-01 12:00:00 UTC), 'n2' (2024-05-01 12:00:00 UTC); they may hold other "
        "data by now"
    )
    assert f"touch -d @0.000000007 {BASE};" in found.advice
    lost = moment("n1", BASE, 7, invalid=True)
    assert "layer-written" not in dict(codes(facts(moments=moments(lost))))


def test_a_checkpoint_needs_its_memory() -> None:
    record = MomentRecord("00000001", "c1", TIME, state=STATE)
    checkpoint = Moment("c1", "external", TIME, (MomentPart("vda", BASE),), record=record)
    seen = facts(moments=moments(checkpoint))
    assert codes(seen) == []
    found = only(replace(seen, missing=frozenset({STATE.file})))
    assert (found.code, found.remedy) == ("state-missing", ("qmpsnap", "delete", "c1"))
    of_fork = replace(checkpoint, record=replace(record, id="qmpsnap-fork-keep-00000001"))
    assert codes(replace(seen, moments=moments(of_fork), missing=frozenset({STATE.file}))) == []


def test_memory_that_nothing_needs_is_removed() -> None:
    found = only(facts(moments=replace(moments(), unneeded=("/images/-x.memory",))))
    assert (found.code, found.remedy) == ("state-unused", ("rm", "--", "/images/-x.memory"))


def test_a_record_that_cannot_be_read_is_named() -> None:
    files = Files(shared=True, bad_records=("/images/base.qmpsnap/x.json: not JSON: really",))
    found = only(facts(files=files))
    assert (found.code, found.subject, found.remedy) == (
        "record-unreadable",
        "/images/base.qmpsnap/x.json",
        (),
    )
    assert "not JSON: really" in found.cause


@each(
    ("state", "kind", "code", "remedy"),
    [
        ("left", "fork", "keeper-left", ("qmpsnap", "template", "--remove", KEEPER)),
        ("gone", "template", "keeper-gone", ("qmpsnap", "template", "--remove", KEEPER)),
        ("gone", "clone", "keeper-gone", ("qmpsnap", "template", "--remove", KEEPER)),
    ],
)
def test_an_image_that_shows_a_need_that_is_gone_is_removed(
    state: KeeperState, kind: Literal["template", "clone", "fork"], code: str, remedy: tuple[str, ...]
) -> None:
    def kept(state: KeeperState) -> Files:
        return Files(shared=True, keepers=Frozen({KEEPER: Keeper(KeptFor(kind, "/srv/web"), state, BASE)}))

    found = only(facts(files=kept(state)))
    assert (found.code, found.subject, found.remedy) == (code, KEEPER, remedy)
    assert codes(facts(files=kept("needed"))) == []


def test_images_that_were_created_together_are_removed_together() -> None:
    def at(name: str) -> str:
        return f"/images/{name}.template.qcow2"

    first, other = KeptFor("template", "/srv/web"), KeptFor("template", "/srv/db")
    keepers = {
        at("base.web-0a1b2c3d"): Keeper(first, "gone", BASE),
        at("s1.web-0a1b2c3d"): Keeper(first, "gone", S1),
        at("base.web-11111111"): Keeper(first, "gone", BASE),
        at("base.db-0a1b2c3d"): Keeper(other, "gone", ""),
    }
    found = diagnose(facts(files=Files(shared=True, keepers=Frozen(keepers))))
    assert [(one.subject, one.cause.partition(" would be")[0]) for one in found] == [
        (at("base.web-0a1b2c3d"), f"a commit into {BASE}, {S1}"),
        (at("base.web-11111111"), f"a commit into {BASE}"),
        (at("base.db-0a1b2c3d"), "a commit into its layer"),
    ]
