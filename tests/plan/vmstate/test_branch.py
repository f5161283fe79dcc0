from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, NotInChain, Refused, TargetExists, Unsupported
from qmpsnap.model.files import DirFact
from qmpsnap.model.graph import Disk, Filter, Io, Node
from qmpsnap.model.machine import Device
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.step import MoveRoot
from qmpsnap.plan.commands.block import blockdev_del
from qmpsnap.plan.commands.files import create_overlay
from qmpsnap.plan.intent import Revert
from qmpsnap.plan.vmstate.branch import branch_token
from qmpsnap.testing.drawing import MIB, chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.moments import BASE, DATA, MOMENT, O1, O2, S1, TWO, files_of
from tests.plan.scenes import NOW, STATE, planned, root_of, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph
    from qmpsnap.model.step import Step
    from qmpsnap.plan.plan import Plan

BACK = Revert("c1")


def branch(plan: Plan, disk: str = "vda") -> tuple[Step, Step, Step]:
    """The steps that give the disk its branch."""
    move = next(
        step
        for step in plan.steps
        if step.command in {"qom-set", "blockdev-reopen"} and root_of(step).disk == disk
    )
    add = next(step for step in plan.steps if step.arguments.get("node-name") == root_of(move).node)
    make = next(step for step in plan.steps if step.arguments.get("file") == root_of(move).file)
    return make, add, move


def backing(make: Step) -> tuple[str, str]:
    """What the overlay records of the layer that it is made on."""
    return make.arguments["backing"], make.arguments["backing_format"]


def renamed(of: Graph, node: str) -> Graph:
    """The same machine, vda's active layer under another node name."""
    disk = replace(with_layer(of.disks["vda"], 0, node=node), root=node)
    return graph(disk, of.disks["vdb"])


def test_branch_is_backed_by_the_layer_that_holds_the_moment() -> None:
    make, add, move = branch(planned(BACK, TWO, files=files_of("")))
    new, old = root_of(move), root_of(move.undo[-1])
    assert make == create_overlay(new.file, size_bytes=64 * MIB, backing=S1, backing_format="qcow2", like=O1)
    assert (add.arguments["backing"], new.backing) == ("vda-s1", S1)
    assert new.chain == ((S1, "qcow2"), (BASE, "qcow2"))
    assert (old.file, old.node, old.chain) == (O1, "vda-o1", new.chain)


def test_branch_records_the_format_of_a_raw_layer() -> None:
    make, add, _ = branch(planned(BACK, TWO, files=files_of("")), "vdb")
    assert backing(make) == (DATA, "raw")
    assert add.arguments["backing"] == "vdb-data.raw"


def test_branch_has_another_file_each_time() -> None:
    first = branch_token(MOMENT, TWO)
    again = branch_token(replace(MOMENT, branches=({"vda": "/x"},)), TWO)
    assert len({first, again, branch_token(MOMENT, graph(vda="base <- s1*"))}) == 3
    make, *_ = branch(planned(BACK, TWO, files=files_of("")))
    assert make.arguments["file"] == f"/images/base.c1-{first}.qcow2"


def test_branch_of_each_clone_of_one_base_has_a_file_of_its_own() -> None:
    clones = graph(vda="base <- s1 <- o1*", vdb="base <- g2 <- o2*")
    files = FakeFiles(clones)
    g2 = "/images/g2.qcow2"
    moment = replace(MOMENT, covered={"vda": S1, "vdb": g2}, chains={"vda": (S1, BASE), "vdb": (g2, BASE)})
    files.records.append(moment)
    plan = planned(BACK, clones, files=files)
    token = branch_token(moment, clones)
    assert [step.arguments["file"] for step in plan.steps if step.command == "create-overlay"] == [
        f"/images/base.vda.c1-{token}.qcow2",
        f"/images/base.vdb.c1-{token}.qcow2",
    ]


@each(
    ("node", "closes"),
    [("vda-o1", False), ("#block123", True), ("qmpsnap-00000002", True), ("qmpsnap-a-00000002", False)],
)
def test_branch_knows_which_old_root_qemu_closes_by_itself(node: str, closes: bool) -> None:
    _, _, move = branch(planned(BACK, renamed(TWO, node), files=files_of("")))
    assert isinstance(move.effect, MoveRoot)
    assert move.effect.closes is closes
    assert (root_of(move.undo[-1]).node == node) is not closes


def test_branch_frees_the_nodes_of_ours_that_it_leaves() -> None:
    plan = planned(BACK, renamed(TWO, "qmpsnap-a-00000002"), files=files_of(""))
    assert [step for step in plan.steps if step.command == "blockdev-del"] == [
        blockdev_del("qmpsnap-a-00000002")
    ]
    assert not [
        step for step in planned(BACK, TWO, files=files_of("")).steps if step.command == "blockdev-del"
    ]


# -- where the disk is plugged in ------------------------------------------------------------------


def filtered(*filters: Filter) -> Graph:
    disk = replace(TWO.disks["vda"], root=filters[0].node, filters=filters)
    return graph(disk, TWO.disks["vdb"])


THROTTLE = Filter("thr", "throttle", "tg")


def test_branch_goes_under_a_throttle_by_opening_that_again() -> None:
    _, _, move = branch(planned(BACK, filtered(THROTTLE), files=files_of("")))
    assert move.command == "blockdev-reopen"
    (options,) = move.arguments["options"]
    assert (options["node-name"], options["throttle-group"]) == ("thr", "tg")


DIRECT, ZEROES = Io(direct=True), Io(no_flush=True, detect_zeroes="on")


@each("node", ["vda-o1", "#block123"])
def test_branch_reads_and_writes_as_the_active_layer_did_there_and_back(node: str) -> None:
    of = renamed(TWO, node)
    of = graph(with_layer(of.disks["vda"], 0, io=DIRECT), of.disks["vdb"])
    plan = planned(BACK, of, files=files_of("", of))
    _, add, move = branch(plan)
    opened = [step.arguments for step in (add, *move.undo) if step.command == "blockdev-add"]
    assert [(sent["file"]["filename"], sent["cache"], sent["discard"]) for sent in opened] == [
        (root_of(move).file, {"direct": True, "no-flush": False}, "unmap"),
        *([(O1, {"direct": True, "no-flush": False}, "unmap")] if node.startswith("#") else []),
    ]
    assert plan.after is not None
    assert plan.after.disks["vda"].active.io == DIRECT
    assert "cache" not in branch(plan, "vdb")[1].arguments


def test_branch_under_a_throttle_lets_that_keep_its_own_options() -> None:
    of = filtered(replace(THROTTLE, io=ZEROES))
    of = graph(with_layer(of.disks["vda"], 0, io=DIRECT), of.disks["vdb"])
    _, add, move = branch(planned(BACK, of, files=files_of("", of)))
    assert move.command == "blockdev-reopen"
    (options,) = move.arguments["options"]
    assert add.arguments["cache"] == {"direct": True, "no-flush": False}
    assert (options["cache"], options["detect-zeroes"]) == ({"direct": False, "no-flush": True}, "on")


@each(
    "filters",
    [
        (Filter("thr", "throttle"),),
        (Filter("m", "mirror_top"),),
        (THROTTLE, THROTTLE),
        (Filter("c", "copy-on-read"), THROTTLE),
    ],
)
def test_branch_is_refused_under_any_other_filter(filters: tuple[Filter, ...]) -> None:
    with pytest.raises(Unsupported, match="vda is under the filter"):
        planned(BACK, filtered(*filters), files=files_of(""))


@each(
    ("path", "kind"),
    [
        ("/machine/peripheral/vda/virtio-backend", "virtio-blk-device"),
        ("/machine/peripheral/vda", "scsi-hd"),
        ("/machine/peripheral-anon/device[1]", "ide-hd"),
    ],
)
def test_branch_is_for_devices_that_were_tried(path: str, kind: str) -> None:
    device = {**a_machine(TWO).devices, "vda": Device(path, kind)}
    _, _, move = branch(planned(BACK, TWO, files=files_of(""), machine=a_machine(TWO, devices=device)))
    assert move.command == "qom-set"
    assert move.arguments["path"] == path


@each(
    "device",
    [
        None,
        Device("/machine/peripheral/vda", "nvme"),
        Device("/machine/peripheral/vda", "usb-storage"),
        Device("/machine/peripheral/vda/vda.0/legacy[0]", "scsi-hd"),
        Device("/machine/peripheral/vda", "virtio-blk-device"),
    ],
)
def test_branch_is_refused_for_any_other_device(device: Device | None) -> None:
    known = {name: one for name, one in a_machine(TWO).devices.items() if name != "vda"}
    machine = a_machine(TWO, devices=known | ({"vda": device} if device else {}))
    with pytest.raises(Unsupported, match=r"another root node|whose root node could") as caught:
        planned(BACK, TWO, files=files_of(""), machine=machine)
    assert caught.value.hint == "leave it out: --leave vda; or revert into a new QEMU: --prepare"


# -- what is refused of the layers -----------------------------------------------------------------


def put(*files: str) -> FakeFiles:
    found = files_of("")
    for file in files:
        found.put(file, format="raw")
    return found


def full() -> FakeFiles:
    files = files_of("")
    files.directories["/images"] = DirFact("/images", exists=True, writable=True, free_bytes=4096)
    return files


def with_record(record: IntentRecord) -> FakeFiles:
    files = files_of("")
    files.records.append(record)
    return files


WROTE = IntentRecord("qmpsnap-commit-keep-0", "commit", NOW, invalid=(BASE,), directory=STATE)
GROWN = graph(with_layer(TWO.disks["vda"], 0, virtual_size=128 * MIB), TWO.disks["vdb"])
FOLDED = graph(chain("base <- s1*"), TWO.disks["vdb"])
REMOTE = graph(with_layer(TWO.disks["vda"], 0, file="nbd://h/x", local=False), TWO.disks["vdb"])
EMPTY = graph(Disk("vda"), TWO.disks["vdb"])
TAKEN = f"/images/base.c1-{branch_token(MOMENT, TWO)}.qcow2"
REFUSED: dict[str, tuple[Graph, FakeFiles, type[Refused], str]] = {
    "taken": (TWO, put(TAKEN), TargetExists, "was not touched"),
    "no room": (TWO, full(), InvalidTarget, "no space left"),
    "invalid": (TWO, with_record(WROTE), NotInChain, "no longer holds a snapshot"),
    "another size": (GROWN, files_of(""), Unsupported, "134217728 bytes, it had 67108864"),
    "folded": (FOLDED, files_of(""), NotInChain, "its overlay was committed into it"),
    "remote": (REMOTE, files_of(""), InvalidTarget, "nothing can be created beside it"),
    "empty": (EMPTY, files_of(""), Unsupported, "no medium"),
}


@each("case", REFUSED)
def test_branch_refuses_what_cannot_be(case: str) -> None:
    drawn, files, error, text = REFUSED[case]
    with pytest.raises(Refused, match=text) as caught:
        planned(BACK, drawn, files=files, state_dir=STATE)
    assert type(caught.value) is error


def test_branch_without_room_says_what_can_be_done_about_it() -> None:
    with pytest.raises(InvalidTarget) as caught:
        planned(BACK, TWO, files=full())
    assert caught.value.hint == "free some space there"


# -- of a moment that a revert left aside ----------------------------------------------------------

C2 = MomentRecord(
    "qmpsnap-checkpoint-keep-00000002",
    "c2",
    NOW,
    overlays={"vda": "/images/o3.qcow2"},
    covered={"vda": O1},
    chains={"vda": (O1, S1, BASE)},
    directory=STATE,
)
ASIDE = graph(vda="base <- s1 <- r1*")


def aside() -> FakeFiles:
    files = files_of("", ASIDE)
    files.records[:] = [replace(MOMENT, branches=({"vda": "/images/r1.qcow2"},)), C2]
    files.put(O1, backing=S1)
    files.put("/images/o3.qcow2", backing=O1)
    return files


def test_branch_of_a_moment_left_aside_opens_the_chain_by_its_headers() -> None:
    make, add, move = branch(planned(Revert("c2"), ASIDE, files=aside()))
    assert backing(make) == (O1, "qcow2")
    assert "backing" not in add.arguments
    assert root_of(move).chain == ((O1, "qcow2"), (S1, "qcow2"), (BASE, "qcow2"))


def test_branch_of_a_moment_left_aside_needs_no_overlay_on_a_layer_that_we_made() -> None:
    files = aside()
    del files.facts["/images/o3.qcow2"]  # given up by revert --discard
    make, _, move = branch(planned(Revert("c2"), ASIDE, files=files))
    assert backing(make) == (O1, "qcow2")
    assert root_of(move).chain == ((O1, "qcow2"), (S1, "qcow2"), (BASE, "qcow2"))


def held(file: str, driver: str, *, read_only: bool) -> Graph:
    """ASIDE, and a node of no disk that has the file open."""
    return graph(ASIDE.disks["vda"], nodes=(Node("held", driver, file, read_only),))


def test_branch_of_a_moment_left_aside_is_refused_while_qemu_has_a_layer_open_read_write() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(Revert("c2"), held(BASE, "qcow2", read_only=False), files=aside())
    assert str(caught.value) == (
        "QEMU has /images/base.qcow2 open read-write (node 'held'), and cannot open it a second time for 'c2'"
    )
    assert caught.value.hint == (
        "end this QEMU and start it again, or revert into a new QEMU: qmpsnap revert c2 --prepare"
    )


@each(("driver", "read_only"), [("qcow2", True), ("raw", False), ("file", False)])
def test_branch_of_a_moment_left_aside_shares_a_layer_that_nobody_locks(driver: str, read_only: bool) -> None:
    _, _, move = branch(planned(Revert("c2"), held(BASE, driver, read_only=read_only), files=aside()))
    assert root_of(move).backing == O1


def gone(file: str) -> FakeFiles:
    files = aside()
    del files.facts[file]
    return files


def changed(file: str, backing: str | None) -> FakeFiles:
    files = aside()
    files.put(file, backing=backing)
    return files


def theirs() -> FakeFiles:
    """Nobody knows the format of what C2 covers: no overlay on it, and it is none of ours."""
    files = gone("/images/o3.qcow2")
    files.records[0] = replace(MOMENT, overlays={}, branches=({"vda": "/images/r1.qcow2"},))
    files.records[1] = replace(C2, overlays={"vda": "/images/o3.qcow2"})
    return files


@each(
    ("files", "text"),
    [
        (gone(O1), "is gone"),
        (changed(O1, BASE), "is now backed by '/images/base.qcow2'"),
        (changed(BASE, "/images/more.qcow2"), "is backed by '/images/more.qcow2', which was not so at 'c2'"),
    ],
)
def test_branch_of_a_moment_left_aside_is_refused_when_its_chain_is_another(
    files: FakeFiles, text: str
) -> None:
    with pytest.raises(NotInChain, match=text):
        planned(Revert("c2"), ASIDE, files=files)


def test_branch_of_a_moment_left_aside_probes_no_format() -> None:
    with pytest.raises(Refused):
        planned(Revert("c2"), ASIDE, files=theirs())


def test_branch_is_not_named_as_any_node_that_is_there() -> None:
    _, _, move = branch(planned(BACK, TWO, files=files_of("")))
    node = root_of(move).node
    used = replace(TWO, nodes={**TWO.nodes, node: TWO.nodes["vda-base"]})
    _, _, other = branch(planned(BACK, used, files=files_of("")))
    assert root_of(other).node != node
    assert O2 not in root_of(other).file


def recorded(*formats: str) -> FakeFiles:
    """No overlay of the moment is left; its record tells the formats."""
    files = gone("/images/o3.qcow2")
    files.records[1] = replace(C2, formats={"vda": formats})
    return files


def test_branch_of_a_moment_left_aside_takes_formats_as_they_were_recorded() -> None:
    aside = graph(with_layer(ASIDE.disks["vda"], -1, format="raw"))
    make, _, move = branch(planned(Revert("c2"), aside, files=recorded("qcow2", "qcow2", "raw")))
    assert backing(make) == (O1, "qcow2")
    assert root_of(move).chain == ((O1, "qcow2"), (S1, "qcow2"), (BASE, "raw"))


@each(
    ("file", "backing", "text"),
    [
        (O1, BASE, "is now backed by '/images/base.qcow2', not by"),
        (O1, None, "is now backed by nothing"),
        (BASE, "/images/more.qcow2", "is backed by '/images/more.qcow2', which was not so at 'c2'"),
    ],
)
def test_branch_of_recorded_formats_is_refused_when_the_chain_is_another(
    file: str, backing: str | None, text: str
) -> None:
    files = recorded("qcow2", "qcow2", "qcow2")
    files.put(file, backing=backing)
    with pytest.raises(NotInChain, match=text):
        planned(Revert("c2"), ASIDE, files=files)


def test_branch_of_recorded_formats_is_refused_when_a_layer_is_gone_or_of_an_unknown_format() -> None:
    files = recorded("qcow2", "qcow2", "qcow2")
    files.put(O1, format="raw")
    with pytest.raises(NotInChain, match="no longer an image"):
        planned(Revert("c2"), ASIDE, files=files)
    with pytest.raises(NotInChain, match="is now backed by nothing, not by"):
        planned(Revert("c2"), ASIDE, files=recorded("vmdk", "qcow2", "qcow2"))


def stolen(base: str, *, data_file: str | None = None) -> FakeFiles:
    """A record that came with a bundle: its chain ends in a file that no disk of the machine has open."""
    files = recorded("qcow2", "raw")
    record = files.records[1]
    assert isinstance(record, MomentRecord)
    files.records[1] = replace(record, chains={"vda": (O1, base)})
    files.put(base, format="raw")
    files.put(O1, backing=base, backing_format="raw")
    fact = files.facts[O1]
    assert fact.header is not None
    files.facts[O1] = replace(fact, header=replace(fact.header, data_file=data_file))
    return files


@each("base", ["/etc/shadow", "/images/sub/other.raw", "/home/other/disk.raw"])
def test_branch_is_backed_by_no_file_of_the_host_that_a_record_alone_names(base: str) -> None:
    with pytest.raises(NotInChain, match=f"'c2' stands on {base}, which no disk of this machine has open"):
        planned(Revert("c2"), ASIDE, files=stolen(base))


@each(("mark", "inode", "allowed"), [("a" * 32, 7, True), ("a" * 32, 8, False), ("", 7, False)])
def test_branch_may_be_backed_by_a_base_image_beside_the_overlay_itself_only(
    mark: str, inode: int, allowed: bool
) -> None:
    """A copy of the overlay, or another image of its name, shows nothing."""
    base, overlay = "/old/base.raw", "/old/o.qcow2"
    files = stolen(base)
    record = files.records[1]
    assert isinstance(record, MomentRecord)
    files.records[1] = replace(record, branches=({"vda": overlay},), marks={overlay: f"{'a' * 32}-7"})
    files.put(overlay, backing=O1)
    fact = files.facts[overlay]
    assert fact.header is not None
    files.facts[overlay] = replace(fact, header=replace(fact.header, mark=mark), inode=inode)
    if allowed:
        _, _, move = branch(planned(Revert("c2"), ASIDE, files=files))
        assert root_of(move).chain == ((O1, "qcow2"), (base, "raw"))
    else:
        with pytest.raises(NotInChain, match="which no disk of this machine has open"):
            planned(Revert("c2"), ASIDE, files=files)


def test_branch_may_be_backed_by_a_base_image_beside_the_layers() -> None:
    """After a complete stream the base is in no chain any more, and can be gone back to."""
    _, _, move = branch(planned(Revert("c2"), ASIDE, files=stolen("/images/was.raw")))
    assert root_of(move).chain == ((O1, "qcow2"), ("/images/was.raw", "raw"))


def test_branch_is_refused_when_a_layer_keeps_its_data_in_a_file_that_nobody_has_open() -> None:
    with pytest.raises(NotInChain, match="keeps its data in another file"):
        planned(Revert("c2"), ASIDE, files=stolen("/images/was.raw", data_file="/etc/shadow"))


def test_branch_is_refused_when_the_record_calls_a_raw_layer_an_image() -> None:
    """The guest may have written a header into it, and QEMU would follow that."""
    aside = graph(with_layer(ASIDE.disks["vda"], -1, format="raw"))
    with pytest.raises(NotInChain, match="is raw in the chain of vda, and qcow2 in 'c2'"):
        planned(Revert("c2"), aside, files=recorded("qcow2", "qcow2", "qcow2"))
