from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_file import to_json
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.record_reading import ReadBefore
from qmpsnap.run.record_search import link_name, read_records
from tests.model.records import overlaying, stages

if TYPE_CHECKING:
    from pathlib import Path

    from qmpsnap.model.record import Record

NOON = "2024-05-01T12:00:00+00:00"


def put(record: Record) -> None:
    os.makedirs(record.directory, exist_ok=True)  # noqa: PTH103
    with open(os.path.join(record.directory, record.file_name), "w") as file:  # noqa: PTH118, PTH123
        file.write(to_json(record))


def moment(place: Path, name: str, overlay: str, held: str, directory: str) -> MomentRecord:
    return MomentRecord(
        f"id-{name}",
        name,
        NOON,
        {"vda": f"{place}/{overlay}"},
        {"vda": f"{place}/{held}"},
        directory=f"{place}/{directory}",
    )


def found(place: Path, *near: str, ask: str = "s2.qmpsnap") -> list[str]:
    records, bad = read_records([f"{place}/{ask}"], near=[f"{place}/{file}" for file in near])
    assert bad == ()
    return sorted(record.name for record in records)


def test_records_beside_are_found_when_another_program_took_the_base_image_away(tmp_path: Path) -> None:
    put(moment(tmp_path, "one", "s1", "base", "base.qmpsnap"))
    put(moment(tmp_path, "two", "s2", "s1", "base.qmpsnap"))
    put(moment(tmp_path, "theirs", "t1", "golden", "golden.qmpsnap"))
    assert found(tmp_path, "s2") == ["one", "two"]  # s2 stands alone, and its own directory does not exist
    assert found(tmp_path, "t0") == []


def test_a_record_is_found_by_the_mark_of_a_layer_that_another_one_has_under_its_new_name(
    tmp_path: Path,
) -> None:
    """As after `mv s1 mid`, once the record of the moment at which that layer began was changed."""
    mark = f"{'1' * 32}-7"
    one = moment(tmp_path, "one", "mid", "base", "base.qmpsnap")
    two = moment(tmp_path, "two", "s2", "s1", "base.qmpsnap")
    put(replace(one, branches=({"vda": f"{tmp_path}/r1"},), marks={f"{tmp_path}/mid": mark}))
    put(replace(two, marks={f"{tmp_path}/s1": mark}))
    assert found(tmp_path, "r1", ask="base.qmpsnap") == ["one", "two"]


def test_records_of_operations_beside_are_not_read(tmp_path: Path) -> None:
    intent = IntentRecord("a", "snapshot", NOON, chains={"vda": (f"{tmp_path}/s2",)})
    put(replace(intent, directory=f"{tmp_path}/base.qmpsnap"))
    assert found(tmp_path, "s2") == []
    assert found(tmp_path, "s2", ask="base.qmpsnap") == [""]


def test_records_beside_are_not_searched_where_all_are_asked_for(tmp_path: Path) -> None:
    put(moment(tmp_path, "two", "s2", "s1", "base.qmpsnap"))
    assert read_records([f"{tmp_path}/s2.qmpsnap"]) == ((), ())


def test_records_beside_a_directory_of_the_callers_own_are_not_searched(tmp_path: Path) -> None:
    put(moment(tmp_path, "two", "s2", "s1", "base.qmpsnap"))
    assert found(tmp_path, "s2", ask="own") == []


@pytest.mark.parametrize("wrong", ["writable", "symlink", "cut", "file"])
def test_records_beside_that_cannot_be_trusted_are_passed_over(tmp_path: Path, wrong: str) -> None:
    record = moment(tmp_path, "two", "s2", "s1", "base.qmpsnap")
    put(record)
    directory = tmp_path / "base.qmpsnap"
    if wrong == "writable":
        directory.chmod(0o777)
    elif wrong == "symlink":
        directory.rename(tmp_path / "away")
        directory.symlink_to(tmp_path / "away")
    elif wrong == "cut":
        (directory / record.file_name).rename(directory / "moment-two.json")
    else:
        (directory / record.file_name).unlink()
        directory.rmdir()
        directory.touch()
    assert found(tmp_path, "s2") == []


async def test_records_are_found_through_a_link_beside_an_overlay_in_another_directory(
    tmp_path: Path,
) -> None:
    place = f"{tmp_path}/images"
    for name in ("images", "more"):
        (tmp_path / name).mkdir()
    overlay = f"{tmp_path}/more/s1"
    intent = IntentRecord(
        "a",
        "snapshot",
        NOON,
        name="one",
        chains={"vda": (f"{place}/base",)},
        stages=stages(*overlaying({"vda": overlay}, {"vda": f"{place}/base"})),
    )
    catalog = Catalog()
    record = await catalog.to_moment(await catalog.write_intent(intent, f"{place}/base.qmpsnap"))
    assert os.listdir(f"{tmp_path}/more/base.qmpsnap") == [link_name(record.directory)]  # noqa: PTH208
    assert read_records([f"{tmp_path}/more/s1.qmpsnap"], near=[overlay]) == ((record,), ())
    await catalog.finish(record)
    assert os.listdir(f"{tmp_path}/more") == []  # noqa: PTH208


def test_directories_that_lead_to_each_other_are_opened_once(tmp_path: Path) -> None:
    put(moment(tmp_path, "two", "s2", "s1", "a.qmpsnap"))
    put(moment(tmp_path, "three", "s3", "s2", "b.qmpsnap"))
    (tmp_path / "c.qmpsnap").mkdir()
    for place in "abc":
        for to in "abc":
            (tmp_path / f"{place}.qmpsnap" / f"elsewhere-{to * 8}").symlink_to(tmp_path / f"{to}.qmpsnap")
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for ask in ("a.qmpsnap", "c.qmpsnap", "s3.qmpsnap"):
        assert found(tmp_path, "s3", "s2", ask=ask) == ["three", "two"]
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_directory_that_two_paths_lead_to_is_read_once(tmp_path: Path) -> None:
    """As under a bind mount; a link among the directories above is the same."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    put(moment(tmp_path / "a", "one", "s1", "base", "base.qmpsnap"))
    put(moment(tmp_path / "a", "two", "s2", "s1", "base.qmpsnap"))
    near = [f"{tmp_path}/a/s2", f"{tmp_path}/b/s1"]
    for asked in (
        ["a/base", "b/base"],
        ["b/base", "a/base"],
        ["a/s2", "b/s1"],
        ["a/base", "b/s1"],
        ["b/base"],
    ):
        records, bad = read_records([f"{tmp_path}/{each}.qmpsnap" for each in asked], near=near)
        assert ([record.name for record in records], bad) == (["one", "two"], ()), asked
        first = asked[0][0]
        assert {record.directory for record in records} == {f"{tmp_path}/{first}/base.qmpsnap"}, asked


def test_a_record_that_was_read_before_is_read_again_only_when_it_is_another_file(tmp_path: Path) -> None:
    record = moment(tmp_path, "two", "s2", "s1", "base.qmpsnap")
    put(record)
    file = tmp_path / "base.qmpsnap" / record.file_name
    before = ReadBefore()

    def read() -> tuple[tuple[Record, ...], tuple[str, ...]]:
        return read_records([record.directory], near=[f"{tmp_path}/s2"], before=before)

    (first,), _ = read()
    (again,), _ = read()
    assert again is first
    file.chmod(0o666)
    assert read() == ((), (f"{file}: others may write to it, so it is not trusted",))
    file.unlink()
    put(replace(record, created="2024-05-02T12:00:00+00:00"))
    assert read()[0][0] != first
    file.unlink()
    assert read() == ((), ())


MARK = b"m" * 16


def marked_image(file: Path) -> str:
    """Create an image with that mark in its header; return what a record keeps of it."""
    file.write_bytes(empty_qcow2(virtual_size=1 << 20, mark=MARK).parts[0][1])
    return f"{MARK.hex()}-{file.stat().st_ino}"


@pytest.mark.parametrize(("name", "stays"), [("renamed", True), ("renamed.invalid", False), ("", False)])
async def test_a_record_stays_whose_overlay_was_renamed(tmp_path: Path, name: str, stays: bool) -> None:
    mark = marked_image(tmp_path / name) if name else f"{MARK.hex()}-0"
    old = replace(
        moment(tmp_path, "old", "gone1", "gone0", "base.qmpsnap"),
        created="2024-01-01T12:00:00+00:00",
        marks={f"{tmp_path}/gone1": mark},
    )
    put(old)
    intent = IntentRecord(
        "a",
        "snapshot",
        NOON,
        name="new",
        chains={"vda": (f"{tmp_path}/base",)},
        stages=stages(*overlaying({"vda": f"{tmp_path}/s1"}, {"vda": f"{tmp_path}/base"})),
    )
    catalog = Catalog()
    await catalog.to_moment(await catalog.write_intent(intent, old.directory))
    records, _ = read_records([old.directory])
    assert ("old" in [record.name for record in records]) is stays


async def test_a_record_goes_whose_moment_was_held_by_the_layer_that_the_guest_has_written(
    tmp_path: Path,
) -> None:
    """Its mark is there, under its own name."""
    mark = marked_image(tmp_path / "s1")
    old = replace(
        moment(tmp_path, "old", "gone1", "s1", "base.qmpsnap"),
        created="2024-01-01T12:00:00+00:00",
        marks={f"{tmp_path}/s1": mark},
    )
    put(old)
    intent = IntentRecord(
        "a",
        "snapshot",
        NOON,
        name="new",
        chains={"vda": (f"{tmp_path}/s1", f"{tmp_path}/base")},
        stages=stages(*overlaying({"vda": f"{tmp_path}/s2"}, {"vda": f"{tmp_path}/s1"})),
    )
    catalog = Catalog()
    await catalog.to_moment(await catalog.write_intent(intent, old.directory))
    assert [record.name for record in read_records([old.directory])[0]] == ["new"]
