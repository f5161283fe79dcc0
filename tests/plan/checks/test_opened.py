from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import pytest
from msgspec.structs import replace

from qmpsnap.errors import FileMoved, Unsupported
from qmpsnap.model.files import OpenFile, OpenState, Reopens
from qmpsnap.model.graph import Node
from qmpsnap.plan.commands.files import create_file
from qmpsnap.plan.intent import (
    Checkpoint,
    Commit,
    Delete,
    Intent,
    Load,
    MakeStore,
    Mirror,
    Prune,
    Restore,
    Revert,
    Save,
    SaveDevices,
    Snapshot,
    Stream,
)
from qmpsnap.plan.plan import Plan
from qmpsnap.testing.drawing import chain, graph
from qmpsnap.testing.fake_files import FakeFiles
from tests.each import each
from tests.plan.scenes import planned, started, with_layer

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph

TWO = graph(vda="base <- s1*", vdb="other*")
BASE, S1 = "/images/base.qcow2", "/images/s1.qcow2"
TEMPORARY = "/var/tmp/vl.aB3xYz"

VERBS: list[Intent] = [
    Snapshot("one"),
    Snapshot("one", ("vda",)),
    Snapshot("one", inside=True),
    Checkpoint("one", "stop"),
    Checkpoint("one", "in-place"),
    Checkpoint("one", "internal"),
    Save("/images/x.memory"),
    Commit("vda"),
    Stream("vda"),
    Mirror("vda", "/images/new.qcow2", "pivot", "none"),
    Revert("one"),
    Revert("one", into="new"),
    Restore("/images/x.memory"),
    Revert("one", into="incoming"),
]


def files(
    there: Graph,
    name: str,
    state: OpenState,
    path: str = "",
    *,
    replaced: bool = False,
    reopens: Reopens = "same",
    shared: bool = True,
) -> FakeFiles:
    found = FakeFiles(there, shared=shared)
    inode = 0 if state == "unknown" else 7
    found.open[name] = OpenFile(name, state, path, 1, inode, replaced=replaced, reopens=reopens)
    return found


def test_every_verb_is_tried_here_but_the_deletion_of_moments_and_those_on_new_machines() -> None:
    others = {Delete, Prune, Load, SaveDevices, MakeStore}
    assert {type(intent) for intent in VERBS} == {*get_args(Intent)} - others


@each("shared", [True, False])
@each("name", [BASE, S1])
@each("intent", VERBS)
def test_verbs_refuse_a_layer_that_was_moved(intent: Intent, name: str, shared: bool) -> None:
    if isinstance(intent, Revert) and not shared:
        shared = True
    with pytest.raises(FileMoved) as refused:
        planned(intent, TWO, files=files(TWO, name, "moved", "/other/x.qcow2", shared=shared))
    assert refused.value.message == (
        f"{name}, which vda has open, was moved: that file is now /other/x.qcow2"
    )
    assert refused.value.hint == (
        f"move it back: mv -T /other/x.qcow2 {name}, or copy the disk to a new file: "
        "qmpsnap mirror vda FILE --pivot"
    )
    assert (refused.value.file, refused.value.path) == (name, "/other/x.qcow2")


@each(
    ("state", "path", "replaced", "message", "hint"),
    [
        (
            "moved",
            "/other/x.qcow2",
            True,
            f"{S1} is not the file that vda has open: that file is now /other/x.qcow2",
            f"move {S1} away and /other/x.qcow2 back to that name, or copy",
        ),
        (
            "moved",
            "",
            False,
            f"{S1}, which vda has open, was moved: it is not known where that file is now",
            "copy",
        ),
        (
            "unlinked",
            "",
            False,
            f"{S1}, which vda has open, was removed: it has no name any more",
            "copy",
        ),
        (
            "unlinked",
            "",
            True,
            f"{S1}, which vda has open, was removed: another file has that name now",
            "copy",
        ),
    ],
)
def test_refusal_names_both_files_and_the_way_out(
    state: OpenState, path: str, replaced: bool, message: str, hint: str
) -> None:
    with pytest.raises(FileMoved) as refused:
        planned(Snapshot("one"), TWO, files=files(TWO, S1, state, path, replaced=replaced))
    assert refused.value.message == message
    assert refused.value.hint == f"{hint} the disk to a new file: qmpsnap mirror vda FILE --pivot"


@each("state", ["moved", "unlinked"])
@each("ending", ["pivot", "finish"])
def test_a_full_mirror_is_the_way_out(state: OpenState, ending: str) -> None:
    path = "/other/x.qcow2" if state == "moved" else ""
    plan = planned(
        Mirror("vda", "/images/new.qcow2", ending),  # type: ignore[arg-type]
        TWO,
        files=files(TWO, S1, state, path, replaced=True),
    )
    assert create_file("/images/new.qcow2", path) in plan.steps


@each("intent", [Snapshot("one", ("vdb",)), Mirror("vda", "/images/new", "finish", "top")])
def test_other_layers_are_worked_on(intent: Intent) -> None:
    assert isinstance(planned(intent, TWO, files=files(TWO, S1, "moved")), Plan)


def test_verbs_refuse_when_the_external_data_file_was_moved() -> None:
    there = graph(with_layer(chain("base <- s1*"), 1, data_file="/images/base.data"))
    with pytest.raises(FileMoved, match=r"/images/base\.data, which vda has open, was moved"):
        planned(Snapshot("one"), there, files=files(there, "/images/base.data", "moved", "/x"))


@pytest.mark.parametrize("state", ["same", "unknown"])
def test_what_is_in_order_or_unknown_is_no_refusal(state: OpenState) -> None:
    assert isinstance(planned(Snapshot("one"), TWO, files=files(TWO, S1, state)), Plan)


def test_verbs_refuse_when_qemu_would_open_another_file_by_its_own_name() -> None:
    there = graph(nodes=(Node("f", "file", S1, spelled="s1.qcow2"),), vda="base <- s1*")
    with pytest.raises(FileMoved) as refused:
        planned(Snapshot("one"), there, files=files(there, S1, "same", S1, reopens="other"))
    assert refused.value.message == (
        f"QEMU calls {S1} 's1.qcow2', and would get another file if it opened that name again"
    )


def in_snapshot_mode() -> Graph:
    disk = chain("base <- s1 <- x*")
    return graph(replace(disk, layers=(replace(disk.active, file=TEMPORARY), *disk.layers[1:])), vdb="other*")


@each("state", ["unlinked", "unknown"])
@each(
    "intent",
    [*(one for one in VERBS if not isinstance(one, Commit)), Mirror("vda", "/images/new", "finish")],
)
def test_verbs_refuse_a_disk_in_snapshot_mode(intent: Intent, state: OpenState) -> None:
    there = in_snapshot_mode()
    with pytest.raises(Unsupported, match=r"vda is in snapshot mode \(-snapshot, snapshot=on\)") as refused:
        planned(intent, there, files=files(there, TEMPORARY, state))
    assert refused.value.hint.startswith("qmpsnap commit vda keeps what was written")


def test_other_disks_of_a_machine_with_one_in_snapshot_mode_are_worked_on() -> None:
    there = in_snapshot_mode()
    assert isinstance(
        planned(Snapshot("one", ("vdb",)), there, files=files(there, TEMPORARY, "unlinked")), Plan
    )


def test_commit_keeps_what_a_disk_in_snapshot_mode_wrote() -> None:
    there = in_snapshot_mode()
    plan = planned(Commit("vda", base="s1"), there, files=files(there, TEMPORARY, "unlinked"))
    assert plan.chains_after["vda"] == (S1, BASE)
    assert not any(step.command == "retire-file" for step in plan.steps)
    assert plan.invalid == ()


def given_by_descriptor(file: str = BASE) -> Graph:
    return graph(
        nodes=(Node("f", "file", file, spelled="/dev/fdset/1"),), vda="base <- s1 <- s2*", vdb="other*"
    )


def test_commit_refuses_to_write_into_a_file_given_by_descriptor() -> None:
    with pytest.raises(Unsupported, match=f"QEMU was given {BASE} as a file descriptor") as refused:
        planned(Commit("vda"), given_by_descriptor())
    assert refused.value.hint == "qmpsnap stream vda, or qmpsnap mirror vda FILE --pivot"


@each("intent", [Commit("vda", top="s2", base="s1"), Stream("vda", into="s1")])
def test_layers_are_not_written_that_qemu_cannot_open_again(intent: Intent) -> None:
    there = graph(nodes=(Node("f", "file", S1, spelled="images/s1.qcow2"),), vda="base <- s1 <- s2*")
    with pytest.raises(
        Unsupported, match="does not exist relative to its working directory: it cannot open it again"
    ):
        planned(intent, there, files=files(there, S1, "same", S1, reopens="nothing"))


def test_a_layer_is_written_that_qemu_has_open_for_writing() -> None:
    there = graph(nodes=(Node("f", "file", S1, spelled="images/s1.qcow2"),), vda="base <- s1*")
    assert isinstance(
        planned(Stream("vda"), there, files=files(there, S1, "same", S1, reopens="nothing")), Plan
    )


@each("sync", ["top", "none"])
def test_mirror_refuses_to_have_a_name_recorded_that_leads_nowhere(sync: str) -> None:
    with pytest.raises(Unsupported, match=r"in the copy, where that name leads nowhere") as refused:
        planned(Mirror("vda", "/images/new.qcow2", "pivot", sync), given_by_descriptor())  # type: ignore[arg-type]
    assert refused.value.hint == "copy the whole disk: --sync full"


@each("intent", [Commit("vda", top="s1", base="base"), Stream("vda", base="base")])
def test_headers_name_the_file_when_qemus_own_name_leads_nowhere(intent: Intent) -> None:
    there = graph(nodes=(Node("f", "file", BASE, spelled="images/base.qcow2"),), vda="base <- s1 <- s2*")
    assert started(planned(intent, there)).arguments["backing-file"] == BASE


@each(
    ("intent", "index"),
    [
        (Snapshot("one"), 0),
        (Checkpoint("one", "stop"), 0),
        (Revert("one"), 0),
        (Revert("one"), 1),
        (Revert("one", into="new"), 1),
    ],
)
def test_verbs_refuse_to_name_a_part_of_a_file_as_if_it_were_all(intent: Intent, index: int) -> None:
    there = graph(with_layer(chain("base <- s1*"), index, window=True))
    with pytest.raises(Unsupported, match=r"vda is a part of /images/.*\.qcow2") as refused:
        planned(intent, there)
    assert "qmpsnap mirror vda FILE --pivot" in refused.value.hint


@each(
    ("intent", "index"),
    [
        (Snapshot("one"), 1),
        (Snapshot("one", inside=True), 0),
        (Mirror("vda", "/images/new.qcow2", "pivot"), 0),
        (Mirror("vda", "/images/new.qcow2", "pivot", "top"), 1),
        (Commit("vda"), 1),
        (Stream("vda"), 0),
    ],
)
def test_a_part_of_a_file_is_worked_on_where_no_name_of_ours_speaks_of_it(intent: Intent, index: int) -> None:
    assert isinstance(planned(intent, graph(with_layer(chain("base <- s1*"), index, window=True))), Plan)


def test_commit_leaves_the_file_of_which_a_layer_is_a_part() -> None:
    there = graph(with_layer(chain("base <- s1*"), 0, window=True))
    assert not any(step.command == "retire-file" for step in planned(Commit("vda"), there).steps)


@each(
    ("intent", "index"),
    [
        (Snapshot("one"), 0),
        (Checkpoint("one", "stop"), 0),
        (Revert("one"), 0),
        (Revert("one", into="new"), 1),
        (Mirror("vda", "/images/new.qcow2", "pivot", "top", "qcow2"), 0),
        (Mirror("vda", "/images/new.qcow2", "pivot", "top"), 1),
        (Mirror("vda", "/images/new.qcow2", "pivot", "none", "qcow2"), 0),
        (Mirror("vda", "/images/new.qcow2", "finish"), 0),
        (Mirror("vda", "/images/new.qcow2", "pivot"), 1),
        (Stream("vda"), 1),
        (Commit("vda"), 0),
    ],
)
def test_verbs_refuse_to_name_or_copy_a_layer_that_is_made_of_another_image(
    intent: Intent, index: int
) -> None:
    there = graph(with_layer(chain("base <- s1*"), index, format="raw", inner="qcow2"))
    with pytest.raises(
        Unsupported, match=r"of vda is raw over an image of the format qcow2 \(/images/"
    ) as no:
        planned(intent, there)
    assert (no.value.feature, no.value.hint) == (
        "raw over qcow2",
        "start QEMU with that image as a separate qcow2 node",
    )


@each(("intent", "index"), [(Snapshot("one", inside=True), 1), (Snapshot("one"), 1), (Commit("vda"), 1)])
def test_a_layer_that_is_made_of_another_image_stays_what_it_is_below_others(
    intent: Intent, index: int
) -> None:
    there = graph(with_layer(chain("base <- s1*"), index, format="raw", inner="qcow2"))
    assert isinstance(planned(intent, there), Plan)


def test_a_disk_on_several_images_can_only_be_copied_whole() -> None:
    there = graph(with_layer(chain("base <- s1*"), 0, format="quorum", inner="quorum"))
    with pytest.raises(Unsupported, match="of vda is quorum over images") as no:
        planned(Snapshot("one"), there)
    assert "qmpsnap mirror vda FILE --pivot" in no.value.hint
    assert isinstance(planned(Mirror("vda", "/images/new.qcow2", "pivot", format="qcow2"), there), Plan)
