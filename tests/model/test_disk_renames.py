"""Whose disk a record is about, when disks are called otherwise than they were then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.model.disk_renames import with_current_names
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.testing.drawing import chain, graph

if TYPE_CHECKING:
    from qmpsnap.model.graph import Graph


def moment(name: str, disk: str, overlay: str, *below: str) -> MomentRecord:
    """The record of a moment on one disk: its overlay, and the chain beneath, newest first."""
    return MomentRecord(
        id=f"id-{name}",
        name=name,
        created="2026-01-01T00:00:00+00:00",
        overlays={disk: overlay},
        covered={disk: below[0]},
        chains={disk: below},
        formats={disk: ("qcow2",) * len(below)},
        lost=(disk,),
        deleted_from=(disk,),
    )


def one(disk: str) -> MomentRecord:
    return moment("one", disk, "/images/s1.qcow2", "/images/base.qcow2")


def branched(disk: str) -> MomentRecord:
    return replace(one(disk), branches=({disk: "/images/s2.qcow2"},))


def aside(disk: str) -> MomentRecord:
    """What a revert to `one` has left aside: nothing of it is in the chain but its base."""
    return moment("two", disk, "/images/x.qcow2", "/images/s1.qcow2", "/images/base.qcow2")


def on(name: str, drawing: str = "base <- s1*") -> Graph:
    return graph(chain(drawing, name=name))


@pytest.mark.parametrize(
    ("records", "now", "expected"),
    [
        pytest.param((one("device[0]"),), on("vda"), (one("vda"),), id="by its overlay"),
        pytest.param(
            (aside("device[0]"), branched("device[0]")),
            on("vda", "base <- s2*"),
            (aside("vda"), branched("vda")),
            id="by what it stands on",
        ),
        pytest.param((one("vda"),), on("vda"), (one("vda"),), id="as before"),
        pytest.param((one("vda"),), on("vdb", "base <- y*"), (one("vda"),), id="a base tells nothing"),
        pytest.param(
            (one("vda"),),
            graph(chain("base <- s1*", name="a"), chain("base <- s1*", name="b")),
            (one("vda"),),
            id="two disks read it",
        ),
        pytest.param(
            (one("vda"),),
            graph(chain("base <- s1*", name="a"), chain("base <- s1*", name="vda")),
            (one("vda"),),
            id="two devices on the same node",
        ),
    ],
)
def test_disk_of_a_record_is_known_by_its_overlays(
    records: tuple[MomentRecord, ...], now: Graph, expected: tuple[MomentRecord, ...]
) -> None:
    assert with_current_names(records, now) == expected


def test_disks_that_have_changed_their_numbers_are_exchanged_and_intents_are_not() -> None:
    both = MomentRecord(
        id="id-both",
        name="both",
        created="2026-01-01T00:00:00+00:00",
        overlays={"device[0]": "/images/s1.qcow2", "device[1]": "/images/t1.qcow2"},
        covered={"device[0]": "/images/base.qcow2", "device[1]": "/images/t.qcow2"},
    )
    intent = IntentRecord("i", "snapshot", both.created, chains={"device[0]": ("/images/base.qcow2",)})
    now = graph(chain("base <- s1*", name="device[1]"), chain("t <- t1*", name="device[0]"))
    exchanged = replace(
        both,
        overlays={"device[1]": "/images/s1.qcow2", "device[0]": "/images/t1.qcow2"},
        covered={"device[1]": "/images/base.qcow2", "device[0]": "/images/t.qcow2"},
    )
    assert with_current_names((both, intent), now) == (exchanged, intent)
