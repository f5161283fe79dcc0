"""Stamps of layers: taken with a moment, and renewed by operations of ours that write to the layers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.model.layer_stamps import stamp_of
from qmpsnap.model.record import IntentRecord, MomentRecord, Record
from qmpsnap.model.step import Stage
from qmpsnap.plan.commands.records import finish_record, keep_moment, write_record
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.host import Host
from qmpsnap.run.images import Images
from qmpsnap.run.record_search import read_records
from qmpsnap.testing.drawing import graph
from tests.headers import qcow2_bytes
from tests.model.records import TIME, overlaying, stages, streaming

if TYPE_CHECKING:
    from pathlib import Path


class Place:
    """A directory with the layers base <- s1 <- s2*, and the record of a moment that s1 holds."""

    def __init__(self, path: Path) -> None:
        self.base, self.s1, self.s2 = (str(path / f"{name}.qcow2") for name in ("base", "s1", "s2"))
        self.records = str(path / "base.qmpsnap")
        self.host = Host(Images(), Catalog())
        for number, file in enumerate((self.base, self.s1), 1):
            with open(file, "wb") as image:  # noqa: PTH123
                image.write(qcow2_bytes())
            self.write(file, number)

    def write(self, file: str, modified_ns: int) -> None:
        os.utime(file, ns=(0, modified_ns))

    def stamp(self, file: str, modified_ns: int) -> str:
        return stamp_of(None, modified_ns=modified_ns, inode=os.stat(file).st_ino)  # noqa: PTH116

    async def take(self, *, writable: str = "") -> None:
        """Take the moment; QEMU has a layer open for writing."""
        drawn = graph(vda="base <- s1 <- s2*").disks["vda"]
        files = (self.s2, self.s1, self.base)
        layers = tuple(
            replace(layer, file=file, read_only=file not in {self.s2, writable})
            for layer, file in zip(drawn.layers, files, strict=True)
        )
        intent = IntentRecord(
            "m",
            "snapshot",
            TIME,
            chains={"vda": (self.s1, self.base)},
            stages=stages(*overlaying({"vda": self.s2}, {"vda": self.s1})),
            name="n1",
        )
        await self.host.perform(write_record(self.records, intent))
        self.host.graph = graph(replace(drawn, layers=layers))
        await self.host.perform(keep_moment(self.records, "m", "n1"))

    async def begin(self) -> None:
        """Begin a stream into s1."""
        start = streaming("job", above=self.s1, base=None)
        intent = IntentRecord(
            "job",
            "stream",
            TIME,
            chains={"vda": (self.s2, self.s1, self.base)},
            stages=(Stage("go", (start,)),),
            renews={"m": self.records, "gone": self.records},
        )
        await self.host.perform(write_record(self.records, intent))

    async def end(self) -> None:
        await self.host.perform(finish_record(self.records, ("job",)))

    @property
    def all(self) -> tuple[Record, ...]:
        return read_records([self.records])[0]

    @property
    def stamps(self) -> dict[str, str]:
        (moment,) = (one for one in self.all if isinstance(one, MomentRecord))
        return dict(moment.stamps)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_moment_has_stamps_of_the_layers_that_qemu_does_not_write_to(place: Place) -> None:
    await place.take(writable=place.base)
    assert place.stamps == {place.s1: place.stamp(place.s1, 2)}


async def test_an_operation_renews_the_stamps_of_what_it_writes_to(place: Place) -> None:
    await place.take()
    await place.begin()
    (intent,) = (one for one in place.all if isinstance(one, IntentRecord))
    assert intent.stamps == {place.s1: place.stamp(place.s1, 2)}
    place.write(place.s1, 20)
    await place.end()
    assert place.stamps == {
        place.s1: place.stamp(place.s1, 20),
        place.base: place.stamp(place.base, 1),
    }
    assert [one.id for one in place.all] == ["m"]


async def test_an_operation_renews_nothing_that_others_had_written_to(place: Place) -> None:
    await place.take()
    place.write(place.s1, 10)
    await place.begin()
    place.write(place.s1, 20)
    await place.end()
    assert place.stamps[place.s1] == place.stamp(place.s1, 2)


async def test_a_layer_that_is_gone_when_the_operation_ends_has_no_stamp(place: Place) -> None:
    await place.take()
    await place.begin()
    os.unlink(place.s1)  # noqa: PTH108
    await place.end()
    assert place.stamps == {place.base: place.stamp(place.base, 1)}
