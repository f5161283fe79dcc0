from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from qmpsnap.errors import InvalidTarget, TargetExists
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.header import parse_header
from qmpsnap.model.kept_state import KeptState
from qmpsnap.model.layer_renames import Renames
from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.record import IntentRecord, MomentRecord, Origin, moment_of
from qmpsnap.plan.commands.files import (
    create_file,
    create_image,
    create_memory,
    create_overlay,
    create_store,
    remove_file,
    remove_orphan,
    remove_state,
    reserve_memory,
    retire_file,
    seal_memory,
    seal_store,
)
from qmpsnap.plan.commands.records import (
    finish_record,
    keep_branch,
    keep_continued,
    keep_link,
    keep_lost,
    keep_moment,
    keep_store,
    write_record,
)
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.host import Host
from qmpsnap.run.images import Images
from qmpsnap.run.record_search import read_records
from tests.model.records import overlaying, stages

RECORD = IntentRecord(
    "qmpsnap-snapshot-keep-00000000",
    "snapshot",
    "2024-05-01T12:00:00+00:00",
    chains={"vda": ("/d/base",)},
    stages=stages(*overlaying({"vda": "/d/o"}, {"vda": "/d/base"})),
    name="n1",
)


@pytest.fixture
def host() -> Host:
    return Host(Images(), Catalog())


async def with_moment(host: Host, tmp_path: Path) -> str:
    """A directory of records that holds one moment's."""
    place = str(tmp_path / "base.qmpsnap")
    await host.perform(write_record(place, RECORD))
    await host.perform(keep_moment(place, RECORD.id, "n1"))
    return place


@pytest.fixture
def base(tmp_path: Path) -> str:
    file = tmp_path / "base.raw"
    file.write_bytes(bytes(4096))
    file.chmod(0o640)
    return str(file)


async def test_host_writes_and_finishes_a_record(host: Host, tmp_path: Path) -> None:
    place = str(tmp_path / "base.qmpsnap")
    await host.perform(write_record(place, RECORD))
    await host.perform(write_record(place, replace(RECORD, id="other")))
    await host.perform(finish_record(place, (RECORD.id, "never-there")))
    assert [record.id for record in read_records((place,))[0]] == ["other"]
    await host.perform(finish_record(place, (RECORD.id,)))  # twice does no harm
    await host.perform(finish_record(place, ("other",)))
    assert list(tmp_path.iterdir()) == []


async def test_host_turns_an_intent_into_its_moment(host: Host, tmp_path: Path) -> None:
    place = await with_moment(host, tmp_path)
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
    with pytest.raises(InvalidTarget, match="no longer exists"):
        await host.perform(keep_moment(str(tmp_path), RECORD.id, "n1"))


async def test_host_makes_an_overlay_like_the_layer_that_it_covers(host: Host, base: str) -> None:
    overlay = base + ".o"
    await host.perform(
        create_overlay(overlay, size_bytes=4096, backing=base, backing_format="raw", like=base)
    )
    header = parse_header(Path(overlay).read_bytes())
    assert header is not None
    assert (header.virtual_size, header.backing, header.backing_format) == (4096, base, "raw")


async def test_host_makes_an_empty_placeholder_and_removes_it(host: Host, base: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    await host.perform(create_file(str(copy), base))
    assert (copy.stat().st_size, copy.stat().st_mode & 0o777) == (0, 0o640)
    copy.write_bytes(b"QEMU formats it, and it is ours all the same")
    await host.perform(remove_file(str(copy)))
    assert not copy.exists()
    await host.perform(remove_file(str(copy)))  # twice does no harm


async def test_host_makes_an_image_without_data(host: Host, base: str, tmp_path: Path) -> None:
    for form, size in (("raw", 4096), ("qcow2", 262_144)):
        copy = tmp_path / f"copy.{form}"
        await host.perform(create_image(str(copy), base, size_bytes=4096, format=form))
        assert (copy.stat().st_size, copy.stat().st_mode & 0o777) == (size, 0o640)
    header = parse_header(copy.read_bytes())
    assert header is not None
    assert (header.virtual_size, header.backing) == (4096, None)


async def test_host_never_makes_a_file_over_another(host: Host, base: str, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("precious")
    for step in (
        create_file(str(taken), base),
        create_overlay(str(taken), size_bytes=4096, backing=base, backing_format="raw", like=base),
    ):
        with pytest.raises(TargetExists):
            await host.perform(step)
    assert taken.read_text() == "precious"


async def test_host_does_not_remove_what_took_the_name_of_its_file(
    host: Host, base: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    await host.perform(create_file(str(copy), base))
    copy.rename(tmp_path / "moved")
    copy.write_text("somebody else's")
    await host.perform(remove_file(str(copy)))
    assert copy.read_text() == "somebody else's"


async def test_host_retires_a_file(host: Host, base: str, tmp_path: Path) -> None:
    await host.perform(retire_file(base, "keep", ""))
    await host.perform(retire_file(base, "rename", base + ".invalid"))
    assert [file.name for file in tmp_path.iterdir()] == ["base.raw.invalid"]
    await host.perform(retire_file(base + ".invalid", "remove", ""))
    assert list(tmp_path.iterdir()) == []


async def test_host_keeps_a_layer_on_which_an_image_is_based_by_then(
    host: Host, base: str, tmp_path: Path
) -> None:
    image = await Images().create_image(
        str(tmp_path / "o.qcow2"),
        size_bytes=1 << 20,
        format="qcow2",
        like=None,
        backing=base,
        backing_format="raw",
    )
    with pytest.raises(InvalidTarget, match="is based on it by now"):
        await host.perform(retire_file(base, "remove", "", alone=True))
    await Images().remove_created(image)
    await host.perform(retire_file(base, "remove", "", alone=True))
    assert list(tmp_path.iterdir()) == []


async def test_host_removes_an_orphan_only_while_it_is_empty(host: Host, tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    orphan.touch()
    await host.perform(remove_orphan(str(orphan), None))
    assert not orphan.exists()
    orphan.write_text("data")
    with pytest.raises(InvalidTarget, match="no longer empty"):
        await host.perform(remove_orphan(str(orphan), None))
    assert orphan.read_text() == "data"


KEPT = Fingerprint("pc", 7, (), {}, {})
MOMENT = moment_of(RECORD)


async def test_host_makes_seals_and_removes_a_memory_file(host: Host, tmp_path: Path) -> None:
    partial, whole = str(tmp_path / "m.partial"), str(tmp_path / "m")
    await host.perform(create_memory(partial))
    assert Path(partial).stat().st_mode & 0o777 == 0o600
    Path(partial).write_bytes(b"stream")
    await host.perform(seal_memory(partial, whole, id="id", name="c1", running=True, fingerprint=KEPT))
    assert (host.state_bytes, Path(partial).exists()) == (len(b"stream"), False)
    await host.perform(remove_file(partial))  # what took another name is not removed by the old one
    assert Path(whole).exists()
    await host.perform(remove_state(whole, "id"))
    await host.perform(remove_state(whole, "id"))  # twice does no harm
    assert list(tmp_path.iterdir()) == []


async def test_host_removes_a_memory_file_that_it_made_although_qemu_wrote_to_it(
    host: Host, tmp_path: Path
) -> None:
    partial = tmp_path / "m.partial"
    await host.perform(create_memory(str(partial)))
    partial.write_bytes(b"half a stream")
    await host.perform(remove_file(str(partial)))
    assert not partial.exists()


async def test_host_leaves_nothing_of_a_memory_file_for_which_there_is_no_room(
    host: Host, tmp_path: Path
) -> None:
    made = create_memory(str(tmp_path / "m"))
    await host.perform(made)
    with pytest.raises(InvalidTarget, match="cannot reserve space for the guest's memory"):
        await host.perform(reserve_memory(str(tmp_path / "m"), at_most_bytes=1 << 62, process=""))
    for step in made.undo:
        await host.perform(step)
    assert list(tmp_path.iterdir()) == []


async def test_host_reserves_for_a_second_file_of_a_name_as_for_the_first(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "m"  # names are the same when an operation is tried again
    for _ in range(2):
        made = create_memory(str(file))
        await host.perform(made)
        await host.perform(reserve_memory(str(file), at_most_bytes=1 << 20, process=""))
        assert file.stat().st_blocks * 512 >= 1 << 20
        await host.perform(*made.undo)


async def test_host_makes_a_store_that_is_private_whatever_the_layer_is(
    host: Host, base: str, tmp_path: Path
) -> None:
    partial, whole = str(tmp_path / "m.partial"), str(tmp_path / "m")
    await host.perform(create_store(partial, base))
    assert Path(partial).stat().st_mode & 0o777 == 0o600
    header = parse_header(Path(partial).read_bytes())
    assert header is not None
    assert (header.format, header.backing) == ("qcow2", None)
    await host.perform(seal_store(partial, whole))
    assert host.state_bytes == Path(whole).stat().st_size


async def test_host_seals_nothing_over_another_file(host: Host, tmp_path: Path) -> None:
    partial, whole = tmp_path / "m.partial", tmp_path / "m"
    partial.write_bytes(b"stream")
    partial.chmod(0o600)
    whole.write_text("precious")
    for step in (
        seal_memory(str(partial), str(whole), id="id", name="c1", running=True, fingerprint=KEPT),
        seal_store(str(partial), str(whole)),
    ):
        with pytest.raises(TargetExists):
            await host.perform(step)
    assert whole.read_text() == "precious"


async def test_host_says_what_cannot_be_sealed(host: Host, tmp_path: Path) -> None:
    gone = str(tmp_path / "m.partial")
    with pytest.raises(InvalidTarget, match="no such file"):
        await host.perform(
            seal_memory(gone, str(tmp_path / "m"), id="id", name="c1", running=True, fingerprint=KEPT)
        )


async def with_store(host: Host, base: str, tmp_path: Path) -> tuple[str, IntentRecord, Path]:
    """A directory with the records of a checkpoint and of its store that is being made; that; the stream."""
    place, stream = str(tmp_path / "base.qmpsnap"), tmp_path / "m.memory"
    state = KeptState("stop", str(stream), "", True, KEPT, "00000001")
    stream.touch(mode=0o600)
    taken = replace(RECORD, state=state, origin=Origin(True))
    await host.perform(write_record(place, taken))
    await host.perform(
        seal_memory(str(stream), f"{stream}.tmp", id=RECORD.id, name="n1", running=True, fingerprint=KEPT)
    )
    Path(f"{stream}.tmp").rename(stream)
    await host.perform(keep_moment(place, RECORD.id, "n1"))
    made = replace(state, mode="in-place", file=str(tmp_path / "m.vmstate.qcow2"), tag="qmpsnap-0a1b2c3d")
    making = replace(taken, id="qmpsnap-store-keep-0a1b2c3d", op="store", stages=(), state=made)
    await host.perform(write_record(place, making))
    await host.perform(create_store(made.partial, base))
    await host.perform(seal_store(made.partial, made.file))
    return place, making, stream


async def test_host_names_the_store_in_the_record_before_it_removes_the_stream(
    host: Host, base: str, tmp_path: Path
) -> None:
    place, making, stream = await with_store(host, base, tmp_path)
    made = making.state
    assert made is not None
    for _ in range(2):  # twice does no harm
        await host.perform(keep_store(place, RECORD.id, by=making.id, instead_of=str(stream)))
        (moment,) = (one for one in read_records((place,))[0] if isinstance(one, MomentRecord))
        status = Path(made.file).stat()
        assert moment.state == replace(made, inode=status.st_ino, user=status.st_uid)
        assert not stream.exists()


async def test_host_keeps_a_stream_that_is_of_another_operation_by_its_note(
    host: Host, base: str, tmp_path: Path
) -> None:
    place, making, stream = await with_store(host, base, tmp_path)
    other = tmp_path / "n.memory"
    other.touch(mode=0o600)
    await host.perform(
        seal_memory(str(other), str(other) + "2", id="x", name="c", running=True, fingerprint=KEPT)
    )
    Path(f"{other}2").rename(stream)
    await host.perform(keep_store(place, RECORD.id, by=making.id, instead_of=str(stream)))
    assert stream.exists()


@pytest.mark.parametrize("how", ["removed", "deleted"])
async def test_host_makes_no_store_of_a_checkpoint_that_was_deleted_meanwhile(
    host: Host, base: str, tmp_path: Path, how: str
) -> None:
    place, making, stream = await with_store(host, base, tmp_path)
    delete = keep_link(place, RECORD.id) if how == "deleted" else finish_record(place, (), (RECORD.id,))
    await host.perform(delete)
    await host.perform(keep_store(place, RECORD.id, by=making.id, instead_of=str(stream)))
    assert [one.state for one in read_records((place,))[0] if isinstance(one, MomentRecord)] == (
        [None] if how == "deleted" else []
    )


async def test_host_adds_a_branch_to_its_moment_once(host: Host, tmp_path: Path) -> None:
    place = await with_moment(host, tmp_path)
    for _ in range(2):
        await host.perform(keep_branch(place, RECORD.id, {"vda": "/d/r1"}))
    await host.perform(keep_branch(place, RECORD.id, {"vda": "/d/r2"}))
    branches = ({"vda": "/d/r1"}, {"vda": "/d/r2"})
    assert read_records((place,))[0] == (replace(MOMENT, branches=branches, directory=place),)


@pytest.mark.parametrize("command", ["keep-branch", "keep-continued"])
async def test_host_takes_the_mark_of_the_file_that_goes_on_there_now(
    host: Host, tmp_path: Path, command: str
) -> None:
    """A file of the same name went on there before; it was removed since."""
    place = await with_moment(host, tmp_path)
    file = tmp_path / "s1"
    was = replace(
        MOMENT, directory=place, marks={str(file): f"{'9' * 32}-9"}, continued=({"vda": str(file)},)
    )
    await Catalog().rewrite(was)
    image = empty_qcow2(virtual_size=1 << 20, backing="/d/base", backing_format="qcow2", mark=b"1" * 16)
    (_, header), *_ = image.parts
    file.write_bytes(header)
    await host.perform(
        keep_continued(place, RECORD.id, "vda", str(file))
        if command == "keep-continued"
        else keep_branch(place, RECORD.id, {"vda": str(file)})
    )
    ((now,), _) = read_records((place,))
    assert isinstance(now, MomentRecord)
    assert now.marks == {str(file): f"{(b'1' * 16).hex()}-{file.stat().st_ino}"}


async def test_host_gives_a_layer_its_present_name_once(host: Host, tmp_path: Path) -> None:
    """Two overlays have exchanged their names, and several steps change the record."""
    place = await with_moment(host, tmp_path)
    one, two = (f"{digit * 32}-{number}" for number, digit in enumerate("12", 1))
    was = replace(MOMENT, directory=place, branches=({"vda": "/d/x"},), marks={"/d/o": one, "/d/x": two})
    await Catalog().rewrite(was)
    host.learn((), (), Renames({one: "/d/x", two: "/d/o"}, {"/d/o": "/d/x", "/d/x": "/d/o"}))
    for _ in range(2):
        await host.perform(keep_lost(place, RECORD.id, "vda"))
        await host.perform(keep_continued(place, RECORD.id, "vda", "/d/c"))
    ((now,), _) = read_records((place,))
    assert isinstance(now, MomentRecord)
    assert (now.overlays, now.branches) == ({"vda": "/d/x"}, ({"vda": "/d/o"},))
    assert now.marks == {"/d/x": one, "/d/o": two}


async def test_host_drops_the_oldest_branches_whose_overlays_are_missing_when_there_are_many(
    host: Host, tmp_path: Path
) -> None:
    place = await with_moment(host, tmp_path)
    (tmp_path / "r0").touch()
    branches = tuple({"vda": f"{tmp_path}/r{number}"} for number in range(68))
    await Catalog().rewrite(replace(MOMENT, branches=branches[:66], directory=place))
    for branch in branches[66:]:
        await host.perform(keep_branch(place, RECORD.id, branch))
    kept = replace(MOMENT, branches=(branches[0], *branches[4:]), directory=place)
    assert read_records((place,)) == ((kept,), ())


async def test_hosts_that_change_one_moment_at_a_time_lose_nothing_and_never_hide_it(tmp_path: Path) -> None:
    place = str(tmp_path / "base.qmpsnap")
    hosts = [Host(Images(), Catalog()) for _ in range(2)]
    await hosts[0].perform(write_record(place, RECORD))
    await hosts[0].perform(keep_moment(place, RECORD.id, "n1"))
    names = [[f"/d/{who}{number}" for number in range(10)] for who in "ab"]
    seen = []

    async def change(host: Host, files: list[str]) -> None:
        for file in files:
            await host.perform(keep_branch(place, RECORD.id, {"vda": file}))
            seen.append(len(read_records((place,))[0]))

    async with anyio.create_task_group() as group:
        for host, files in zip(hosts, names, strict=True):
            group.start_soon(change, host, files)
    ((moment,), _) = read_records((place,))
    assert isinstance(moment, MomentRecord)
    assert sorted(branch["vda"] for branch in moment.branches) == sorted(names[0] + names[1])
    assert {*seen} == {1}


async def test_host_says_so_when_the_moment_is_gone(host: Host, tmp_path: Path) -> None:
    place = str(tmp_path / "base.qmpsnap")
    await host.perform(write_record(place, RECORD))  # an intent is no moment
    with pytest.raises(InvalidTarget, match=r"the moment .* no longer exists"):
        await host.perform(keep_branch(place, RECORD.id, {"vda": "/d/r1"}))


async def test_host_leaves_a_moment_of_the_same_id_when_it_finishes_an_operation(
    host: Host, tmp_path: Path
) -> None:
    place = await with_moment(host, tmp_path)
    await host.perform(finish_record(place, (RECORD.id,)))
    records, _ = read_records([place])
    assert [type(one) for one in records] == [MomentRecord]
    await host.perform(finish_record(place, (), (RECORD.id,)))
    assert read_records([place]) == ((), ())
