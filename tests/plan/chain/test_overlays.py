"""What is checked of overlays, by way of the plan of a snapshot that consists of nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from qmpsnap.errors import (
    AmbiguousName,
    BadName,
    Busy,
    InvalidTarget,
    NotFound,
    TargetExists,
    UnsafeImage,
    Unsupported,
)
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk, Filter, Graph, Node
from qmpsnap.model.header import Header
from qmpsnap.model.names import node_name
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.intent import Snapshot
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import NOW, STATE, encrypted, job, overlays_of, planned, unseen, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.step import Overlay

ONE = graph(vda="base <- s1*")
N1 = "/images/base.n1.qcow2"


def taken(intent: Snapshot, of: Graph, files: FakeFiles | None = None) -> tuple[Overlay, ...]:
    steps = planned(intent, of, files=files).steps
    return overlays_of(next(step for step in steps if step.command == "transaction"))


def test_snapshot_takes_every_writable_disk_with_a_medium_and_names_the_others() -> None:
    readonly = replace(chain("iso.raw*", name="vdr"), read_only=True)
    plan = planned(Snapshot("n1"), graph(Disk("cd0"), readonly, vda="base*", vdb="data*"))
    assert plan.disks == ("vda", "vdb")
    assert plan.notes == ("left out: cd0 (empty), vdr (read-only)",)


def test_snapshot_goes_under_a_throttle() -> None:
    disk = replace(chain("base <- s1*"), root="thr", filters=(Filter("thr", "throttle"),))
    plan = planned(Snapshot("n1"), graph(disk))
    assert plan.after is not None
    assert plan.after.disks["vda"].root == "thr"
    assert taken(Snapshot("n1"), graph(disk))[0].covered == "vda-s1"


def test_snapshot_puts_the_overlay_beside_the_active_layer_when_nobody_says_where() -> None:
    disk = chain("base <- s1*")
    moved = with_layer(disk, 0, file="/fast/s1.qcow2")
    assert planned(Snapshot("n1"), graph(moved)).chains_after["vda"][0] == "/fast/base.n1.qcow2"


def test_snapshot_lets_qemu_make_the_overlay_when_its_files_are_not_visible() -> None:
    plan = planned(Snapshot("n1"), ONE, files=unseen(ONE))
    probe, take = plan.steps
    assert probe.way == "probe"
    assert probe.arguments == {
        "driver": "file",
        "node-name": probe.arguments["node-name"],
        "filename": N1,
        "read-only": True,
    }
    assert take.command == "transaction"
    assert overlays_of(take)[0].made_by == "qemu"
    assert "'mode': 'absolute-paths'" in repr(take.arguments)
    assert plan.notes == (
        "QEMU creates the overlays, mode 644 less its umask: its files are not visible from here",
        "there is no writable directory for records: the snapshot's name is not recorded",
    )


def test_snapshot_goes_on_without_a_record_when_no_directory_can_be_written() -> None:
    files = FakeFiles(ONE)
    files.directories["/images"] = DirFact(
        "/images", exists=True, writable=False, problem="permission denied"
    )
    plan = planned(Snapshot("n1", ("vda",), {"vda": "/fast/n1.qcow2"}), ONE, files=files)
    assert plan.record is None
    assert plan.notes == ("there is no writable directory for records: the snapshot's name is not recorded",)


def test_snapshot_takes_an_existing_overlay_when_it_fits() -> None:
    files = FakeFiles(ONE)
    files.put("/images/mine.qcow2", backing="s1.qcow2")
    plan = planned(
        Snapshot("n1", ("vda",), {"vda": "/images/mine.qcow2"}, use_existing=True), ONE, files=files
    )
    assert [step.command for step in plan.steps] == ["write-record", "transaction", "keep-moment"]
    assert plan.record is not None
    assert plan.record.made == ()  # so nobody removes it


def existing(**header: Any) -> FakeFiles:
    files = FakeFiles(ONE)
    files.put("/images/mine.qcow2", backing="/images/s1.qcow2")
    fact = files.facts["/images/mine.qcow2"]
    assert isinstance(fact.header, Header)
    backing = header.get("backing", fact.backing)
    files.facts["/images/mine.qcow2"] = replace(fact, header=replace(fact.header, **header), backing=backing)
    return files


@each(
    ("header", "message"),
    [
        ({"virtual_size": 32 * MIB}, "has 33554432 bytes, vda has 67108864"),
        (
            {"backing": "/images/base.qcow2"},
            "has the backing file '/images/base.qcow2', not /images/s1.qcow2",
        ),
        ({"backing": None}, "has the backing file None"),
        ({"backing": "nbd:host:1"}, "has the backing file 'nbd:host:1'"),
        ({"backing_format": "raw"}, "records the backing format 'raw', not 'qcow2'"),
        ({"backing_format": None}, "records the backing format None"),
        ({"format": "raw"}, "is not a qcow2 image"),
    ],
)
def test_snapshot_refuses_an_existing_overlay_that_does_not_fit(
    header: dict[str, object], message: str
) -> None:
    intent = Snapshot("n1", ("vda",), {"vda": "/images/mine.qcow2"}, use_existing=True)
    with pytest.raises(InvalidTarget, match=message):
        planned(intent, ONE, files=existing(**header))


def test_snapshot_refuses_an_existing_overlay_that_has_data() -> None:
    intent = Snapshot("n1", ("vda",), {"vda": "/images/mine.qcow2"}, use_existing=True)
    files = existing()
    planned(intent, ONE, files=files)
    files.touch("/images/mine.qcow2")
    with pytest.raises(InvalidTarget, match="already has data"):
        planned(intent, ONE, files=files)


def test_snapshot_refuses_an_existing_overlay_that_keeps_its_data_elsewhere() -> None:
    intent = Snapshot("n1", ("vda",), {"vda": "/images/mine.qcow2"}, use_existing=True)
    with pytest.raises(UnsafeImage):
        planned(intent, ONE, files=existing(data_file="/etc/passwd"))


def test_snapshot_refuses_an_existing_overlay_that_is_not_there() -> None:
    with pytest.raises(InvalidTarget, match="does not exist"):
        planned(Snapshot("n1", use_existing=True), ONE)


def test_snapshot_refuses_an_existing_overlay_that_it_cannot_look_at() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Snapshot("n1", use_existing=True), ONE, files=unseen(ONE))
    assert caught.value.feature == "use_existing"


@each("kind", ["regular", "symlink", "directory", "other"])
def test_snapshot_refuses_a_name_that_is_taken(kind: str) -> None:
    files = FakeFiles(ONE)
    files.put(N1, format="raw")
    files.facts[N1] = replace(files.facts[N1], kind=kind)
    with pytest.raises(TargetExists) as caught:
        planned(Snapshot("n1"), ONE, files=files)
    assert (caught.value.file, caught.value.exit_code) == (N1, 3)


@each("file", ["/images/base.qcow2", "/images/s1.qcow2", "/images/data.qcow2"])
@each("use_existing", [True, False])
def test_snapshot_refuses_a_layer_of_any_disk_as_its_file(file: str, use_existing: bool) -> None:
    two = graph(vda="base <- s1*", vdb="data*")
    with pytest.raises(TargetExists, match="is a layer of"):
        planned(Snapshot("n1", ("vda",), {"vda": file}, use_existing), two)


def test_snapshot_refuses_a_layer_under_another_name_as_its_file() -> None:
    files = FakeFiles(ONE)
    files.facts["/link"] = files.facts["/images/base.qcow2"]
    with pytest.raises(TargetExists, match="is a layer of vda"):
        planned(Snapshot("n1", ("vda",), {"vda": "/link"}, use_existing=True), ONE, files=files)


@each(
    ("where", "message"),
    [
        (DirFact("/new", exists=False, writable=False), "does not exist"),
        (
            DirFact("/new", exists=True, writable=False, problem="read-only file system"),
            "read-only file system",
        ),
        (
            DirFact("/new", exists=True, writable=True, free_bytes=4096),
            "no space left in /new: 4096 bytes free",
        ),
    ],
)
def test_snapshot_refuses_a_directory_that_cannot_take_the_overlay(where: DirFact, message: str) -> None:
    files = FakeFiles(ONE)
    files.directories["/new"] = where
    with pytest.raises(InvalidTarget, match=message) as caught:
        planned(Snapshot("n1", ("vda",), {"vda": "/new/n1.qcow2"}), ONE, files=files)
    if where.free_bytes:
        assert caught.value.hint == "free some space there, or choose another file: --disk vda=FILE"


CLONES = graph(vda="base <- s1*", vdb="base <- g2*")


def test_snapshot_gives_each_clone_of_one_base_a_file_of_its_own() -> None:
    assert [one.file for one in taken(Snapshot("n1"), CLONES)] == [
        "/images/base.vda.n1.qcow2",
        "/images/base.vdb.n1.qcow2",
    ]
    assert [one.file for one in taken(Snapshot("n1", ("vdb",)), CLONES)] == [N1]
    given = taken(Snapshot("n1", ("vda", "vdb"), {"vda": N1}), CLONES)
    assert [one.file for one in given] == [N1, "/images/base.vdb.n1.qcow2"]


@each("files", [{"vda": "/d/o", "vdb": "/d/o"}, {"vda": "/images/base.vdb.n1.qcow2"}])
def test_snapshot_refuses_one_file_for_two_disks(files: dict[str, str]) -> None:
    files = {"vdc": N1} | files
    with pytest.raises(InvalidTarget, match="disks 'vda' and 'vdb' are given the same file"):
        planned(Snapshot("n1", files=files), graph(*CLONES.disks.values(), vdc="other*"))


def test_snapshot_refuses_one_disk_named_twice() -> None:
    with pytest.raises(InvalidTarget, match="named twice"):
        planned(Snapshot("n1", ("vda", "vda-s1")), ONE)


def test_snapshot_refuses_two_files_for_one_disk() -> None:
    with pytest.raises(InvalidTarget, match="two files"):
        planned(Snapshot("n1", ("vda",), {"vda": "/a", "vda-s1": "/b"}), ONE)


def test_snapshot_refuses_a_file_for_a_disk_that_is_not_taken() -> None:
    with pytest.raises(NotFound, match="not one of the disks"):
        planned(Snapshot("n1", ("vda",), {"vdb": "/a"}), graph(vda="a*", vdb="b*"))


def test_snapshot_refuses_an_unknown_disk() -> None:
    with pytest.raises(NotFound):
        planned(Snapshot("n1", ("vdz",)), ONE)


def test_snapshot_refuses_an_ambiguous_disk() -> None:
    with pytest.raises(AmbiguousName):
        planned(Snapshot("n1", ("base.qcow2",)), graph(vda="base <- a*", vdb="base <- b*"))


def test_snapshot_refuses_a_machine_without_writable_disks() -> None:
    with pytest.raises(NotFound, match="no writable disk") as caught:
        planned(Snapshot("n1"), graph(Disk("cd0")))
    assert caught.value.hint == (
        "no disk can change, so leave the machine out of a group; a checkpoint, a template or a fork needs a "
        "writable disk, however small; to keep the memory of a running machine: qmpsnap save FILE"
    )


@each("disk", [Disk("vda"), replace(chain("a*"), read_only=True)])
def test_snapshot_refuses_a_named_disk_that_is_empty_or_read_only(disk: Disk) -> None:
    with pytest.raises(Unsupported):
        planned(Snapshot("n1", ("vda",)), graph(disk))


@each("name", ["", "a b", "../x", "x" * 65])
def test_snapshot_refuses_a_name_outside_the_grammar(name: str) -> None:
    with pytest.raises(BadName):
        planned(Snapshot(name), ONE)


def test_snapshot_refuses_a_name_that_the_disk_has_already() -> None:
    files = FakeFiles(ONE)
    s1, base = {"vda": "/images/s1.qcow2"}, {"vda": "/images/base.qcow2"}
    files.records.append(MomentRecord("x", "n1", NOW, s1, base, directory=STATE))
    with pytest.raises(TargetExists, match="already has a snapshot 'n1'"):
        planned(Snapshot("n1", ("vda",), {"vda": "/fast/o.qcow2"}), ONE, files=files)
    assert planned(Snapshot("n2", ("vda",), {"vda": "/fast/o.qcow2"}), ONE, files=files)


def test_snapshot_refuses_a_disk_that_a_job_holds_and_names_the_job() -> None:
    held = graph(chain("base <- s1*"), nodes=(Node("#f", "mirror_top", "/images/s1.qcow2"),))
    with pytest.raises(Busy) as caught:
        planned(Snapshot("n1"), held, jobs=(job("m1"),))
    assert (caught.value.job_id, caught.value.node) == ("m1", "vda-s1")


def test_snapshot_refuses_a_disk_whose_active_layer_somebody_elses_node_covers() -> None:
    covered = graph(
        chain("base <- s1*"), nodes=(Node("old", "qcow2", "/o.qcow2", backing="/images/s1.qcow2"),)
    )
    with pytest.raises(Busy) as caught:
        planned(Snapshot("n1"), covered)
    assert caught.value.hint == """remove it first: qmpsnap qmp blockdev-del '{"node-name": "old"}'"""


@each("command", ["transaction", "blockdev-snapshot-sync"])
def test_snapshot_refuses_a_qemu_without_its_commands(command: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Snapshot("n1"), ONE, commands=COMMANDS - {command})
    assert caught.value.feature == command


def test_snapshot_refuses_to_guess_a_place_beside_a_layer_that_is_no_file() -> None:
    remote = graph(with_layer(chain("base*"), 0, file="nbd://host/x", local=False))
    with pytest.raises(InvalidTarget, match="nothing can be created beside it"):
        planned(Snapshot("n1"), remote)
    assert planned(Snapshot("n1", ("vda",), {"vda": "/images/o.qcow2"}), remote)


def test_snapshot_refuses_another_directory_when_qemu_opened_the_disk_by_a_relative_name() -> None:
    relative = graph(with_layer(chain("base*"), 0, file="base.qcow2"))
    files = unseen(relative)
    with pytest.raises(InvalidTarget, match="the next start does not find"):
        planned(Snapshot("n1", ("vda",), {"vda": "/elsewhere/o.qcow2"}), relative, files=files)
    assert planned(Snapshot("n1"), relative, files=files).chains_after["vda"][0] == "base.n1.qcow2"


def test_snapshot_avoids_node_names_that_are_in_use() -> None:
    first = taken(Snapshot("n1"), ONE)[0].node
    used = graph(chain("base <- s1*"), nodes=(Node(first, "qcow2", "/x"),))
    second = taken(Snapshot("n1"), used)[0].node
    assert second not in {first, node_name(first)}
    assert len(second.encode()) <= 31


def left_aside() -> FakeFiles:
    """Records of a machine that went back to "first", so that "aside" is in no chain any more."""
    s1, base = {"vda": "/images/s1.qcow2"}, {"vda": "/images/base.qcow2"}
    gone = {"vda": "/images/gone.qcow2"}
    files = FakeFiles(ONE)
    files.records += [
        MomentRecord("x", "first", NOW, gone, base, branches=(s1,), directory=STATE),
        MomentRecord("y", "aside", NOW, {"vda": "/images/z.qcow2"}, gone, directory=STATE),
    ]
    return files


@each("name", ["first", "aside"])
def test_snapshot_refuses_a_name_that_a_revert_left_to_another_branch(name: str) -> None:
    with pytest.raises(TargetExists, match=f"already has a snapshot '{name}'"):
        planned(Snapshot(name), ONE, files=left_aside())
    assert planned(Snapshot("other"), ONE, files=left_aside()).steps


def test_snapshot_is_numbered_where_a_deleted_moment_has_left_its_overlay_in_the_chain() -> None:
    left = graph(vda="base <- base.n1.qcow2*", vdb="data*")
    files = [one.file for one in taken(Snapshot("n1"), left)]
    assert files == ["/images/base.n1-2.qcow2", "/images/data.n1-2.qcow2"]
    again = graph(vda="base <- base.n1.qcow2 <- base.n1-2.qcow2*")
    assert taken(Snapshot("n1"), again)[0].file == "/images/base.n1-3.qcow2"


def test_snapshot_of_an_address_is_not_of_a_relative_name() -> None:
    nbd = graph(with_layer(chain("base*"), 0, file="nbd://host:10809/vda", local=False))
    step = taken(Snapshot("n1", files={"vda": "/images/n1.qcow2"}), nbd, unseen(nbd))
    assert step[0].file == "/images/n1.qcow2"


@each(("luks", "secret"), [(True, "sec0"), (False, None)])
def test_overlay_of_the_callers_has_to_be_encrypted_as_the_disk_is(*, luks: bool, secret: str | None) -> None:
    of, files = encrypted("base*")
    files.put("/images/mine.qcow2", backing="/images/base.qcow2")
    files.facts["/images/mine.qcow2"] = replace(files.facts["/images/mine.qcow2"], luks=luks)
    intent = Snapshot("n1", ("vda",), {"vda": "/images/mine.qcow2"}, use_existing=True)
    if secret is None:
        with pytest.raises(Unsupported, match="unencrypted"):
            planned(intent, of, files=files)
        return
    plan = planned(intent, of, files=files)
    assert [step.command for step in plan.steps[1:3]] == ["blockdev-add", "transaction"]
    assert [overlay.secret for overlay in overlays_of(plan.steps[2])] == [secret]
