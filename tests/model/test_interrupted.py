from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.interrupted import finishing, left_behind, what_it_was
from qmpsnap.model.keeper import Keeper, KeptFor
from tests.model.records import COMMIT, MIRROR


def test_what_can_be_completed_is_waited_for() -> None:
    assert finishing(COMMIT, vanished=False) == ("qmpsnap", "job", "wait", "0a1b2c3d")
    assert finishing(MIRROR, vanished=True) == ("qmpsnap", "job", "wait", "0a1b2c3d")


def test_a_commit_that_was_stopped_is_repeated() -> None:
    assert finishing(COMMIT, vanished=True) == ("qmpsnap", "commit", "vda", "--base", "/d/base")
    lower = replace(COMMIT, chains={"vda": ("/d/s2", "/d/s1", "nbd://host/x")})
    assert finishing(lower, vanished=True) == (
        "qmpsnap", "commit", "vda", "--top", "/d/s1", "--base", "nbd://host/x",
    )  # fmt: skip


def test_images_that_were_created_together_are_left_together() -> None:
    fork, template = KeptFor("fork", "/tmp/qmpsnap-run-x/template"), KeptFor("template", "/srv/t1")
    keepers = {
        "/d/base.f-00000001.template.qcow2": Keeper(fork, "left", "/d/base"),
        "/d/s1.f-00000001.template.qcow2": Keeper(fork, "left", "/d/s1"),
        "/d/base.t1-00000002.template.qcow2": Keeper(template, "left", "/d/base"),
        "/d/base.t1-00000003.template.qcow2": Keeper(template, "gone", "/d/base"),
        "/d/base.t1-00000004.template.qcow2": Keeper(template, "needed", "/d/base"),
    }
    forked, made = left_behind(keepers)
    assert (forked.kind, made.kind) == ("fork", "template")
    assert (forked.files, forked.layers) == (tuple(keepers)[:2], ("/d/base", "/d/s1"))
    assert (made.files, made.directory) == (tuple(keepers)[2:3], "/srv/t1")
    assert made.to_json() == {
        "kind": "template",
        "directory": "/srv/t1",
        "files": ("/d/base.t1-00000002.template.qcow2",),
        "layers": ("/d/base",),
    }
    assert made.remedy == ("qmpsnap", "template", "--remove", "/d/base.t1-00000002.template.qcow2")


def test_images_of_a_fork_that_is_shown_are_removed_with_it() -> None:
    keepers = {"/d/s1.f-00000001.template.qcow2": Keeper(KeptFor("fork", "/tmp/x"), "left", "/d/s1")}
    of_fork = replace(COMMIT, id="qmpsnap-fork-keep-0a1b2c3d", op="fork")
    assert left_behind(keepers, [of_fork]) == ()
    assert len(left_behind(keepers, [COMMIT])) == 1


def test_operation_of_a_fork_is_called_one_also_while_it_takes_its_checkpoint() -> None:
    assert what_it_was(COMMIT) == "commit of vda"
    of_fork = replace(COMMIT, id="qmpsnap-fork-keep-0a1b2c3d", name="fork-1")
    assert what_it_was(of_fork) == "fork 'fork-1'"
