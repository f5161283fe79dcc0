from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.graph import Io
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord
from qmpsnap.model.step import Overlay, Root, Step
from qmpsnap.plan.commands.block import (
    blockdev_add,
    blockdev_del,
    open_overlay,
    open_store,
    set_drive,
    snapshot_sync,
)
from qmpsnap.plan.commands.files import create_memory, create_overlay, remove_file
from qmpsnap.plan.commands.jobs import job_dismiss
from qmpsnap.plan.commands.migration import migrate, pass_file, release_file, set_capabilities
from qmpsnap.plan.commands.records import finish_record, write_record
from qmpsnap.plan.commands.state import cont, loadvm, snapshot_load, stop, stop_for_load
from qmpsnap.plan.rollback import taking_back
from tests.model.records import stages

JOB = "qmpsnap-snapshot-keep-00000000"
RECORD = IntentRecord(JOB, "snapshot", "2024-05-01T12:00:00+00:00")
WRITE, FINISH = write_record("/r", RECORD), finish_record("/r", (JOB,))
STATE = KeptState("stop", "/m", "", True, Fingerprint("pc", 1, (), {}, {}), "00000000")
MAKE = create_overlay("/o", size_bytes=1, backing="/b", backing_format="qcow2", like="/b")
TAKE = snapshot_sync((Overlay("vda", "b", "o", "/o", "/b", "us"),))
NEW = Root("vda", "new", "/new", "qcow2", None, ())
OLD = Root("vda", "old", "/old", "qcow2", None, ())
MOVE = set_drive(NEW, "/q", OLD, closes=True)
CAPABILITIES = set_capabilities({"events": True}, {"events": False})
PASS = pass_file("/m.partial", 7, "fdset", write=True)
LOAD = snapshot_load(JOB, "c1", (("", "store"),), "store")


def back(*done: Step, loaded: bool = False) -> tuple[Step, ...]:
    return tuple(taking_back(done, loaded=loaded))


def test_taking_back_is_in_reverse() -> None:
    assert back(WRITE, MAKE, stop()) == (cont(), remove_file("/o"), FINISH)


def test_taking_back_leaves_overlays_that_were_put_on_and_the_record_of_a_snapshot_alone() -> None:
    assert back(WRITE, MAKE, TAKE) == ()
    with_memory = write_record("/r", replace(RECORD, op="checkpoint", state=STATE))
    assert back(with_memory, MAKE, create_memory("/m"), TAKE) == (remove_file("/m"), FINISH)


def test_taking_back_frees_an_encrypted_overlay_that_was_not_put_on() -> None:
    overlay = Overlay("vda", "b", "n", "/o", "/b", "us", "sec0")
    opened = open_overlay(overlay, Io())
    assert back(MAKE, opened) == (blockdev_del("n"), remove_file("/o"))
    assert back(MAKE, opened, snapshot_sync((overlay,))) == ()


def test_taking_back_removes_an_overlay_that_no_disk_has_got() -> None:
    other = create_overlay("/p", size_bytes=1, backing="/b", backing_format="qcow2", like="/b")
    assert back(MAKE, other, TAKE) == (remove_file("/p"),)


def test_taking_back_frees_no_node_twice() -> None:
    store = open_store("n", "/m")
    assert back(store) == (blockdev_del("n"),)
    assert back(store, blockdev_del("n")) == ()
    assert back(blockdev_add("other", "/o"), store, blockdev_del("n")) == (blockdev_del("other"),)


def test_taking_back_leaves_the_disks_and_the_guest_alone_once_memory_was_touched() -> None:
    done = (WRITE, MAKE, blockdev_add("n", "/o"), open_store("s", "/m"), stop(), MOVE, LOAD)
    assert back(*done, loaded=True) == (job_dismiss(JOB), blockdev_del("s"))
    assert back(*done) == (
        job_dismiss(JOB), *MOVE.undo, cont(), blockdev_del("s"), blockdev_del("n"), remove_file("/o"), FINISH,
    )  # fmt: skip
    assert back(CAPABILITIES, PASS, loaded=True) == (release_file(7, "fdset"), *CAPABILITIES.undo)


def test_taking_back_lets_no_guest_run_whose_memory_a_load_has_touched() -> None:
    load = snapshot_load(JOB, "c1", (("vda", "n"),), "n", running=True)
    assert back(load) == (cont(), job_dismiss(JOB))
    assert back(load, loaded=True) == (job_dismiss(JOB),)
    assert back(loadvm("c1", running=True), loaded=True) == ()


def test_rollback_finishes_the_record_of_a_revert_inside_images_in_any_run_state() -> None:
    write = write_record("/r", replace(RECORD, stages=stages(LOAD)))
    assert back(write, LOAD, loaded=True) == (job_dismiss(JOB), FINISH)


def test_taking_back_leaves_a_guest_alone_that_was_let_run_on_already() -> None:
    stopped = (stop(), migrate("fd:m"))
    assert cont() in back(*stopped)
    assert cont() not in back(*stopped, cont())
    assert back(stop(ran=False)) == ()
    assert back(stop_for_load("x"), cont()) == ()
