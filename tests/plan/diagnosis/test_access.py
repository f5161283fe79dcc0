from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.frozen import Frozen
from qmpsnap.model.graph import Node
from qmpsnap.model.machine import Status
from qmpsnap.testing.drawing import graph
from tests.plan.diagnosis.look import BASE, codes, facts, only
from tests.plan.scenes import with_layer


def test_a_second_writer_is_named() -> None:
    seen = facts(writers=Frozen({BASE: "process 7 (dd)"}))
    found = only(seen)
    assert (found.code, found.subject, found.remedy) == ("image-in-use", BASE, ())
    assert found.cause.startswith("process 7 (dd) has it open for writing, too")
    assert "-s" in only(replace(seen, status=None)).advice
    assert codes(replace(seen, status=Status("inmigrate", running=False))) == []
    assert codes(replace(seen, status=Status("running", running=True, migration="active"))) == []


def test_whoever_gave_qemu_a_descriptor_may_keep_its_own() -> None:
    node = Node("n", "file", BASE, spelled="/dev/fdset/1")
    assert codes(facts(graph(vda="base <- s1*", nodes=(node,)), writers=Frozen({BASE: "process 7"}))) == []


def test_a_loop_device_is_detached() -> None:
    found = only(facts(writers=Frozen({BASE: "the loop device /dev/loop3"})))
    assert found.remedy == ("losetup", "-d", "/dev/loop3")


def test_a_layer_that_cannot_be_written_is_a_limit() -> None:
    found = only(facts(read_only=Frozen({BASE: "its mode is 0444"})))
    assert (found.code, found.is_trouble) == ("not-writable", False)
    assert found.remedy == ("chmod", "u+w", BASE)
    assert only(facts(read_only=Frozen({BASE: "it is on a read-only file system"}))).remedy == ()


def test_a_disk_without_snapshots_inside_is_a_limit_beside_others() -> None:
    assert codes(facts(graph(vda="data.raw*"))) == []
    found = only(facts(graph(vda="base*", vdb="data.raw*")))
    assert (found.code, found.subject, found.is_trouble) == ("no-internal", "vdb", False)
    assert found.remedy[2:4] == ("vdb", "/images/data.copy.qcow2")
    there = graph(vda="base*", vdb="data.raw*")
    elsewhere = with_layer(there.disks["vdb"], 0, file="nbd://host/x", local=False)
    assert only(facts(graph(there.disks["vda"], elsewhere))).remedy == ()
