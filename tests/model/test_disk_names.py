from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import AmbiguousName, NotFound, NotInChain
from qmpsnap.model.disk_names import find_disk, find_layer, snapshot_file_name
from qmpsnap.model.graph import Disk, Filter
from qmpsnap.testing.drawing import chain, graph
from tests.each import each

VDA = chain("base <- s1 <- s2*", drive="drv0")
THROTTLED = replace(
    chain("t*", name="vdt"), filters=(Filter("thr", "throttle"),), root="thr", qdev="/machine/peripheral/vdt"
)
ANON = replace(chain("anon*", name="virtio0"), qdev="/machine/peripheral-anon/device[1]/virtio-backend")
NAMED = replace(chain("n*", name="node0"), qdev="/machine/peripheral/vdx/virtio-backend")
FLASH = replace(chain("f*", name="flash"), qdev="/machine/system.flash0")
CDROM = Disk("cd0", qdev="cd0")
ALL = graph(VDA, THROTTLED, ANON, NAMED, CDROM, FLASH)


@each(
    ("spelling", "name"),
    [
        ("vda", "vda"),
        ("/machine/peripheral/vda/virtio-backend", "vda"),
        ("/machine/peripheral/vda", "vda"),
        ("drv0", "vda"),
        ("vda-s2", "vda"),
        ("vda-base", "vda"),
        ("/images/s1.qcow2", "vda"),
        ("base.qcow2", "vda"),
        ("thr", "vdt"),
        ("vdt-t", "vdt"),
        ("/machine/peripheral-anon/device[1]", "virtio0"),
        ("device[1]", "virtio0"),
        ("peripheral-anon/device[1]/virtio-backend", "virtio0"),
        ("system.flash0", "flash"),
        ("vdx", "node0"),
        ("cd0", "cd0"),
        ("/machine/peripheral/cd0", "cd0"),
    ],
)
def test_find_disk_takes_every_spelling(spelling: str, name: str) -> None:
    assert find_disk(ALL, spelling) is ALL.disks[name]


@each("spelling", ["vdz", "", "s1", "device[0]", "device", "/machine/peripheral/vd", "irtio-backend"])
def test_find_disk_refuses_what_no_disk_is_called(spelling: str) -> None:
    with pytest.raises(NotFound) as caught:
        find_disk(ALL, spelling)
    assert caught.value.hint == "the disks are: vda, vdt, virtio0, node0, cd0, flash"


def test_find_disk_refuses_what_two_disks_share() -> None:
    clones = graph(chain("base <- g1*", name="g1"), chain("base <- g2*", name="g2"))
    with pytest.raises(AmbiguousName) as caught:
        find_disk(clones, "/images/base.qcow2")
    assert caught.value.candidates == ("g1", "g2")


def test_find_disk_takes_a_disks_name_before_anothers_drive_id() -> None:
    crossed = graph(chain("a*", name="vda", drive="vdb"), chain("b*", name="vdb", drive="vda"))
    assert find_disk(crossed, "vda") is crossed.disks["vda"]


def test_find_disk_says_so_when_there_are_none() -> None:
    with pytest.raises(NotFound) as caught:
        find_disk(graph(), "vda")
    assert caught.value.hint == "the disks are: none"


@each(
    ("spelling", "index"),
    [
        ("/images/s2.qcow2", 0),
        ("s1.qcow2", 1),
        ("vda-base", 2),
        ("s1", 1),
        ("base", 2),
        ("s2", 0),
    ],
)
def test_find_layer_takes_every_spelling(spelling: str, index: int) -> None:
    assert find_layer(VDA, spelling) == index


def test_find_layer_takes_a_snapshots_name_by_the_name_of_its_file() -> None:
    disk = chain("base <- base.before.qcow2 <- base.later.qcow2*")
    assert find_layer(disk, "before") == 1


def test_find_layer_takes_a_snapshots_name_as_recorded() -> None:
    assert find_layer(VDA, "monday", moments={"monday": "/images/s1.qcow2", "x": "/images/s2.qcow2"}) == 1


def test_find_layer_counts_several_spellings_of_one_layer_as_one_match() -> None:
    disk = chain("base <- base.n1.qcow2*")
    named = replace(disk, layers=(replace(disk.layers[0], node="n1"), disk.layers[1]))
    assert find_layer(named, "n1", moments={"n1": "/images/base.n1.qcow2"}) == 0


def test_find_layer_refuses_two_layers_and_names_them() -> None:
    disk = chain("base <- base.n1.qcow2 <- s2*")
    named = replace(disk, layers=(replace(disk.layers[0], node="n1"), *disk.layers[1:]))
    with pytest.raises(AmbiguousName) as caught:
        find_layer(named, "n1")
    assert caught.value.candidates == ("/images/s2.qcow2", "/images/base.n1.qcow2")


def test_find_layer_takes_a_full_path_before_anything_else() -> None:
    disk = chain("base <- s1*")
    twisted = replace(disk, layers=(replace(disk.layers[0], node="/images/base.qcow2"), disk.layers[1]))
    assert find_layer(twisted, "/images/base.qcow2") == 1


def test_find_layer_takes_a_last_part_before_a_stem() -> None:
    disk = chain("s1.raw <- s1.qcow2.qcow2*")
    assert find_layer(disk, "s1.raw") == 1
    assert find_layer(disk, "s1.qcow2") == 0


@each("spelling", ["s9", "", "/elsewhere/s1.qcow2", "vdb-s1"])
def test_find_layer_refuses_what_is_not_in_the_chain(spelling: str) -> None:
    with pytest.raises(NotInChain) as caught:
        find_layer(VDA, spelling)
    assert caught.value.hint == "the chain is [base] <- [s1] <- [s2*]"


def test_snapshot_file_name_is_the_bases_stem_with_the_name() -> None:
    assert snapshot_file_name("/d/base.v1.img", "n1") == "base.v1.n1.qcow2"
