from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import AmbiguousName, Busy, NotFound, NotInChain, Refused, Unsupported
from qmpsnap.model.graph import Filter, InternalSnapshot, Node
from qmpsnap.model.record import MomentRecord
from qmpsnap.plan.commands.block import internal_delete
from qmpsnap.plan.intent import Delete
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import COMMANDS
from tests.each import each
from tests.plan.scenes import NOW, STATE, job, planned, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk, Graph
    from qmpsnap.plan.intent import Via


def holding(name: str, *snapshots: InternalSnapshot, drawing: str = "base <- s1*", layer: int = 0) -> Disk:
    return with_layer(chain(drawing, name=name), layer, snapshots=snapshots)


OLD = InternalSnapshot("1", "old")
TWO = graph(holding("vda", OLD, InternalSnapshot("2", "new")), holding("vdb", replace(OLD, id="7")))


def test_delete_takes_it_from_each_disk_that_has_it_and_leaves_the_others() -> None:
    plan = planned(Delete("old"), TWO)
    assert plan.steps == (
        internal_delete("vda", "vda-s1", "1", "old"),
        internal_delete("vdb", "vdb-s1", "7", "old"),
    )
    assert plan.after is not None
    assert plan.chains_after == plan.chains_before
    inside = {name: disk.active.snapshots for name, disk in plan.after.disks.items()}
    assert inside == {"vda": (InternalSnapshot("2", "new"),), "vdb": ()}


def test_delete_is_refused_while_a_client_of_ours_reads_it() -> None:
    files = FakeFiles(TWO)
    files.readers = frozenset({("/images/s1.qcow2", "old")})
    with pytest.raises(Busy, match="'old' of vda is being read"):
        planned(Delete("old"), TWO, files=files)
    assert planned(Delete("new"), TWO, files=files).disks == ("vda",)


def test_delete_leaves_disks_alone_that_have_it_not() -> None:
    assert planned(Delete("new"), TWO).disks == ("vda",)


def test_delete_takes_a_name_that_somebody_else_chose() -> None:
    theirs = InternalSnapshot("1", 'a "b"; c\n')
    plan = planned(Delete(theirs.name), graph(holding("vda", theirs)))
    assert plan.steps[0].arguments == {"device": "vda-s1", "id": "1", "name": theirs.name}


def test_delete_says_what_goes_with_it() -> None:
    plan = planned(Delete("vm"), graph(holding("vda", InternalSnapshot("1", "vm", 4096))))
    assert plan.notes == ("its VM state of 4096 bytes is deleted too",)


VM_STATE = InternalSnapshot("1", "vm", 4096)
PART = replace(VM_STATE, vm_state_size=0)
RULE: dict[str, tuple[Graph, str]] = {
    "on every disk": (graph(holding("vda", VM_STATE), holding("vdb", PART)), "delvm"),
    "beside a disk that has it not": (graph(holding("vda", VM_STATE), holding("vdb")), "snapshot-delete"),
    "beside a raw disk": (graph(holding("vda", VM_STATE), chain("d.raw*", name="vdr")), "snapshot-delete"),
    "under a throttle": (
        graph(replace(holding("vda", VM_STATE), root="thr", filters=(Filter("thr", "throttle"),))),
        "snapshot-delete",
    ),
    "beside a node without use": (
        graph(holding("vda", VM_STATE), nodes=(Node("leak", "qcow2", "/images/x.qcow2"),)), "snapshot-delete",
    ),
    "of disks alone": (graph(holding("vda", PART)), "blockdev-snapshot-delete-internal-sync"),
}  # fmt: skip


@each("case", RULE)
def test_delete_goes_as_the_moment_came(case: str) -> None:
    drawn, way = RULE[case]
    assert planned(Delete("vm"), drawn).steps[0].way == way


@each(("via", "way"), [("hmp", "delvm"), ("jobs", "snapshot-delete")])
def test_delete_goes_as_it_is_forced_to(via: Via, way: str) -> None:
    for drawn in (graph(holding("vda", VM_STATE)), graph(holding("vda", PART))):
        assert planned(Delete("vm", via), drawn).steps[0].way == way


REFUSED: dict[str, tuple[Graph, type[Refused], str]] = {
    "missing": (graph(vda="base*"), NotFound, "no snapshot 'old'"),
    "below": (graph(holding("vda", OLD, layer=1)), NotInChain, "inside /images/base.qcow2"),
    "twice in one": (graph(holding("vda", OLD, replace(OLD, id="2"))), AmbiguousName, "more than one"),
    "read-only": (graph(replace(holding("vda", OLD), read_only=True)), Unsupported, "'vda' is read-only"),
}


@each("case", REFUSED)
def test_delete_refuses_what_cannot_be(case: str) -> None:
    drawn, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(Delete("old"), drawn)
    assert type(caught.value) is error


def test_delete_refuses_one_of_both_kinds() -> None:
    disk = holding("vda", OLD)
    files = FakeFiles(graph(disk))
    s1, base = disk.files
    files.records.append(
        MomentRecord("qmpsnap-snapshot-keep-1", "old", NOW, {"vda": s1}, {"vda": base}, directory=STATE)
    )
    with pytest.raises(AmbiguousName, match="external"):
        planned(Delete("old"), graph(disk), files=files)


def test_delete_refuses_a_disk_that_a_job_holds() -> None:
    drawn = graph(*TWO.disks.values(), nodes=(Node("f", "mirror_top", TWO.disks["vda"].active.file),))
    with pytest.raises(Busy, match="'theirs'"):
        planned(Delete("old"), drawn, jobs=(job("theirs"),))


def test_delete_asks_for_the_command() -> None:
    with pytest.raises(Unsupported, match="blockdev-snapshot-delete-internal-sync"):
        planned(Delete("old"), TWO, commands=COMMANDS - {"blockdev-snapshot-delete-internal-sync"})


def test_delete_off_takes_it_from_each_image_with_its_vm_state() -> None:
    there = graph(holding("vda", VM_STATE), holding("vdb", PART))
    plan = planned(Delete("vm"), there, off=True)
    assert plan.steps == tuple(internal_delete(disk, f"{disk}-s1", "1", "vm") for disk in ("vda", "vdb"))
    assert (plan.run_state, plan.notes) == ("", ("its VM state of 4096 bytes is deleted too",))


def test_delete_off_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(Unsupported, match="--via does not apply"):
        planned(Delete("old", via="hmp"), TWO, off=True)
    below = graph(holding("vda", OLD, layer=1))
    for off, when in ((True, "delete it there"), (False, "once the machine is off")):
        with pytest.raises(NotInChain, match="below the active layer") as caught:
            planned(Delete("old"), below, off=off)
        assert caught.value.hint == f"{when}: qemu-img snapshot -d old /images/base.qcow2"
