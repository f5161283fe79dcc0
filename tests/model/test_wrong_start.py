from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from qmpsnap.model.files import BackingLink, Files
from qmpsnap.model.graph import Node
from qmpsnap.model.record import MomentRecord
from qmpsnap.model.wrong_start import WrongStart, recorded_overlays, wrong_starts
from qmpsnap.testing.drawing import chain, graph

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph

NOW = "2024-05-01T12:00:00.000000+00:00"


def standing(*pairs: tuple[str, str]) -> Files:
    return Files(
        shared=True,
        backing_links=tuple(BackingLink(f"/images/{a}.qcow2", f"/images/{b}.qcow2") for a, b in pairs),
    )


def found(there: Graph, *pairs: tuple[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    return [
        (one.disk, tuple(file.removeprefix("/images/").removesuffix(".qcow2") for file in one.newest))
        for one in wrong_starts(there, standing(*pairs))
    ]


def test_started_below_names_the_newest_image_above_the_active_layer() -> None:
    assert found(graph(vda="base*", vdb="b*"), ("s1", "base"), ("s2", "s1")) == [("vda", ("s2",))]


def test_started_below_names_each_branch() -> None:
    assert found(graph(vda="base*"), ("s1", "base"), ("s2", "s1"), ("t1", "base")) == [("vda", ("s2", "t1"))]


def test_started_below_passes_over_the_machines_own_layers() -> None:
    assert found(graph(vda="base <- s1*", vdb="s1 <- s2*"), ("s1", "base"), ("s2", "s1")) == []


def test_started_below_ignores_what_is_only_backed_by_a_lower_layer() -> None:
    assert found(graph(vda="base <- s1*"), ("s1", "base"), ("clone", "base")) == []


def test_started_below_passes_over_images_that_qemu_has_open() -> None:
    target = Node("t", "file", "/images/copy.qcow2")
    assert found(graph(nodes=(target,), vda="base*"), ("copy", "base")) == []


def test_started_below_passes_over_disks_that_are_not_written() -> None:
    assert found(graph(replace(chain("base*"), read_only=True)), ("s1", "base")) == []


def test_warning_names_the_file_to_start_from() -> None:
    assert str(WrongStart("vda", "/b", ("/s",))) == (
        "vda writes into /b, the backing file of /s, and so changes what that reads. "
        "If this machine should run from a newer layer, quit it and start it from /s"
    )
    assert str(WrongStart("vda", "/b", ("/s", "/t"))).endswith("start it from one of /s, /t")


def test_recorded_overlays_are_those_that_began_on_an_active_layer() -> None:
    records = (
        MomentRecord("1", "one", NOW, {"vda": "/far/s1"}, {"vda": "/images/base.qcow2"}),
        MomentRecord(
            "2",
            "two",
            NOW,
            {"vda": "/far/s1"},
            {"vda": "/images/base.qcow2"},
            branches=(MappingProxyType({"vda": "/far/branch"}),),
        ),
        MomentRecord("3", "three", NOW, {"vda": "/far/s9"}, {"vda": "/images/other.qcow2"}),
    )
    assert recorded_overlays(graph(vda="base*"), records) == ("/far/s1", "/far/branch")
    assert recorded_overlays(graph(vda="base <- x*"), records) == ()
