from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qmpsnap.errors import TargetExists, TargetUnusable
from qmpsnap.model.header import parse_header
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.plan.host_steps import (
    CreateOverlay,
    CreatePlaceholder,
    FinishRecord,
    KeepMoment,
    RemoveMade,
    RemoveOrphan,
    RetireFile,
    WriteRecord,
)
from qmpsnap.run.catalog import Catalog, read_records
from qmpsnap.run.host import Host
from qmpsnap.run.images import Images

RECORD = IntentRecord(
    "qmpsnap-snapshot-keep-00000000",
    "snapshot",
    "2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/base",)},
    overlays={"vda": "/d/o"},
    name="n1",
)
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="there is no qemu-img")


@pytest.fixture
def host() -> Host:
    return Host(Images(), Catalog())


@pytest.fixture
def base(tmp_path: Path) -> str:
    file = tmp_path / "base.raw"
    file.write_bytes(bytes(4096))
    file.chmod(0o640)
    return str(file)


async def test_host_writes_and_finishes_a_record(host: Host, tmp_path: Path) -> None:
    place = str(tmp_path / "base.qmpsnap")
    await host.perform(WriteRecord(place, RECORD))
    await host.perform(WriteRecord(place, replace(RECORD, id="other")))
    await host.perform(FinishRecord(place, (RECORD.id, "never-there")))
    assert [record.id for record in read_records((place,))[0]] == ["other"]
    await host.perform(FinishRecord(place, (RECORD.id,)))  # twice does no harm
    await host.perform(FinishRecord(place, ("other",)))
    assert list(tmp_path.iterdir()) == []


async def test_host_turns_an_intent_into_its_moment(host: Host, tmp_path: Path) -> None:
    place = str(tmp_path / "base.qmpsnap")
    await host.perform(WriteRecord(place, RECORD))
    await host.perform(KeepMoment(place, RECORD.id, "n1"))
    ((moment,), _) = read_records((place,))
    assert moment == MomentRecord(
        RECORD.id,
        "n1",
        RECORD.created,
        {"vda": "/d/o"},
        {"vda": "/d/base"},
        {"vda": ("/d/base",)},
        directory=place,
    )


async def test_host_says_so_when_the_record_is_gone(host: Host, tmp_path: Path) -> None:
    with pytest.raises(TargetUnusable, match="is gone"):
        await host.perform(KeepMoment(str(tmp_path), RECORD.id, "n1"))


@needs_qemu_img
async def test_host_makes_an_overlay_like_the_layer_that_it_covers(host: Host, base: str) -> None:
    overlay = base + ".o"
    await host.perform(CreateOverlay(overlay, 4096, base, "raw", base))
    header = parse_header(Path(overlay).read_bytes())
    assert header is not None
    assert (header.virtual_size, header.backing, header.backing_format) == (4096, base, "raw")


async def test_host_makes_an_empty_placeholder_and_removes_it(host: Host, base: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    await host.perform(CreatePlaceholder(str(copy), base))
    assert (copy.stat().st_size, copy.stat().st_mode & 0o777) == (0, 0o640)
    copy.write_bytes(b"QEMU formats it, and it is ours all the same")
    await host.perform(RemoveMade(str(copy)))
    assert not copy.exists()
    await host.perform(RemoveMade(str(copy)))  # twice does no harm


async def test_host_never_makes_a_file_over_another(host: Host, base: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    for step in (CreatePlaceholder(str(taken), base), CreateOverlay(str(taken), 4096, base, "raw", base)):
        with pytest.raises(TargetExists):
            await host.perform(step)
    assert taken.read_text() == "precious"


async def test_host_does_not_remove_what_took_the_name_of_its_file(
    host: Host, base: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    await host.perform(CreatePlaceholder(str(copy), base))
    copy.rename(tmp_path / "moved")
    copy.write_text("somebody else's")
    await host.perform(RemoveMade(str(copy)))
    assert copy.read_text() == "somebody else's"


async def test_host_retires_a_file(host: Host, base: str, tmp_path: Path) -> None:
    await host.perform(RetireFile(base, "keep", ""))
    await host.perform(RetireFile(base, "rename", base + ".invalid"))
    assert [file.name for file in tmp_path.iterdir()] == ["base.raw.invalid"]
    await host.perform(RetireFile(base + ".invalid", "remove", ""))
    assert list(tmp_path.iterdir()) == []


async def test_host_removes_an_orphan_only_while_it_is_empty(host: Host, tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    orphan.touch()
    await host.perform(RemoveOrphan(str(orphan), None))
    assert not orphan.exists()
    orphan.write_text("data")
    with pytest.raises(TargetUnusable, match="not empty"):
        await host.perform(RemoveOrphan(str(orphan), None))
    assert orphan.read_text() == "data"
