import errno
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Busy, InvalidTarget, TargetExists
from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.record import IntentRecord, MomentRecord, moment_of
from qmpsnap.model.record_file import to_json
from qmpsnap.run.catalog import Catalog
from qmpsnap.run.record_search import read_records
from tests.model.records import overlaying, stages


@pytest.fixture
def place(tmp_path):
    directory = tmp_path / "d"
    directory.mkdir()
    return directory


@pytest.fixture
def catalog():
    return Catalog()


def intent(record_id="0a1b2c3d", *, name="n", chains=None, overlays=None):
    chains, overlays = chains or {"vda": ("/d/a",)}, overlays or {"vda": "/d/o"}
    steps = overlaying(overlays, {disk: files[0] for disk, files in chains.items()})
    return IntentRecord(
        record_id, "snapshot", "2024-05-01T12:00:00+00:00", chains, stages=stages(*steps), name=name
    )


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def held(record):
    """The record as others read it while the catalog holds its lock."""
    return replace(record, live=True)


async def test_write_intent_makes_the_directory_and_a_record_that_can_be_read(place, catalog):
    stored = await catalog.write_intent(intent(), f"{place}/base.qmpsnap")
    assert stored == replace(intent(), directory=f"{place}/base.qmpsnap")
    assert names(place / "base.qmpsnap") == ["intent-0a1b2c3d.json"]
    assert read_records([f"{place}/base.qmpsnap"]) == ((held(stored),), ())


async def test_write_intent_never_replaces_a_record(place, catalog):
    stored = await catalog.write_intent(intent(), str(place))
    with pytest.raises(TargetExists):
        await catalog.write_intent(intent(name="other"), str(place))
    assert read_records([str(place)]) == ((held(stored),), ())
    assert names(place) == ["intent-0a1b2c3d.json"]


async def test_write_intent_is_refused_when_there_is_nothing_to_write_in(place, catalog):
    with pytest.raises(InvalidTarget, match=r"cannot write the record .*: there is no directory '.*/d/no'"):
        await catalog.write_intent(intent(), f"{place}/no/base.qmpsnap")


async def test_write_intent_follows_no_symlink(place, catalog):
    (place / "victim").mkdir()
    (place / "base.qmpsnap").symlink_to("victim")
    with pytest.raises(InvalidTarget):
        await catalog.write_intent(intent(), f"{place}/base.qmpsnap")
    assert names(place / "victim") == []


@pytest.mark.parametrize("mode", [0o757, 0o775])
async def test_a_directory_that_others_may_write_is_neither_written_nor_read(place, catalog, mode):
    (place / "intent-x.json").write_text(to_json(intent("x")))
    place.chmod(mode)
    with pytest.raises(InvalidTarget, match="not trusted"):
        await catalog.write_intent(intent(), str(place))
    assert read_records([str(place)]) == (
        (),
        (f"{place}: others may write to it, so it is not trusted",),
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_strangers_directory_is_neither_written_nor_read(place, catalog):
    (place / "intent-x.json").write_text(to_json(intent("x")))
    os.chown(place, 12345, 12345)
    with pytest.raises(InvalidTarget, match="belongs to the user 12345"):
        await catalog.write_intent(intent(), str(place))
    assert read_records([str(place)])[0] == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_read_leaves_out_a_strangers_record(place, catalog):
    (place / "intent-x.json").write_text(to_json(intent("x")))
    os.chown(place / "intent-x.json", 12345, 12345)
    records, bad = read_records([str(place)])
    assert (records, "not trusted" in bad[0]) == ((), True)


@pytest.mark.parametrize("record_id", ["", "../x", "a/b", "x" * 65])
async def test_write_intent_is_refused_when_the_id_is_no_id(place, catalog, record_id):
    with pytest.raises(InvalidTarget, match="is no id"):
        await catalog.write_intent(intent(record_id), f"{place}/base.qmpsnap")
    assert names(place) == []


async def test_finish_removes_the_record_and_the_empty_directory(place, catalog):
    stored = await catalog.write_intent(intent(), f"{place}/base.qmpsnap")
    for _ in range(2):
        await catalog.finish(stored)
        assert names(place) == []


async def test_finish_keeps_the_other_records(place, catalog):
    stored = await catalog.write_intent(intent(), f"{place}/base.qmpsnap")
    other = await catalog.write_intent(intent("other"), f"{place}/base.qmpsnap")
    await catalog.finish(stored)
    assert read_records([f"{place}/base.qmpsnap"]) == ((held(other),), ())


async def test_to_moment_puts_the_moment_in_the_intents_place(place, catalog):
    stored = await catalog.write_intent(intent(chains={"vda": ("/d/a", "/d/base")}), str(place))
    moment = await catalog.to_moment(stored)
    assert moment == moment_of(stored)
    assert moment.covered == {"vda": "/d/a"}
    assert names(place) == ["moment-n-0a1b2c3d.Mmr-PAaI.json"]
    assert read_records([str(place)]) == ((moment,), ())


async def test_to_moment_keeps_the_intent_when_the_moment_cannot_be_written(place, catalog):
    stored = await catalog.write_intent(intent(), str(place))
    (place / "moment-n-0a1b2c3d.Mmr-PAaI.json").write_text("precious")
    with pytest.raises(TargetExists):
        await catalog.to_moment(stored)
    assert names(place) == ["intent-0a1b2c3d.json", "moment-n-0a1b2c3d.Mmr-PAaI.json"]
    assert (place / "moment-n-0a1b2c3d.Mmr-PAaI.json").read_text() == "precious"


async def test_read_reports_what_is_no_record_of_ours(place, catalog, tmp_path):
    stored = await catalog.write_intent(intent(), str(place))
    (place / "intent-half.json").write_text('{"version":1')
    (place / "intent-renamed.json").write_text(to_json(intent()))
    (place / "moment-n-0a1b2c3d.json").write_text("of an earlier version")
    (place / "moment-binary.any.json").write_bytes(b"\xff")
    (tmp_path / "elsewhere").write_text(to_json(intent("link")))
    (place / "intent-link.json").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(place / "intent-fifo.json")
    (place / "somebody's.json").write_text("7")
    records, bad = read_records([str(place)])
    assert records == (held(stored),)
    assert [line.removeprefix(f"{place}/") for line in bad] == [
        "intent-fifo.json: it is a FIFO",
        "intent-half.json: expecting ',' delimiter: line 1 column 13 (char 12)",
        "intent-link.json: it is a symbolic link",
        "intent-renamed.json: holds the record 'intent-0a1b2c3d.json'",
        "moment-binary.any.json: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        "moment-n-0a1b2c3d.json: the keys of its layers are not in its name",
    ]


async def test_read_reports_a_directory_that_is_none_and_passes_over_a_missing_one(place, catalog):
    (place / "file").touch()
    assert read_records([f"{place}/file", f"{place}/no"]) == ((), (f"{place}/file: not a directory",))


async def test_read_reads_each_directory_once(place, catalog):
    stored = await catalog.write_intent(intent(), str(place))
    assert read_records([str(place), str(place)]) == ((held(stored),), ())


async def test_rewrite_puts_a_moment_in_the_place_of_what_it_was(place, catalog):
    moment = await catalog.to_moment(await catalog.write_intent(intent(), str(place)))
    later = replace(moment, branches=({"vda": "/d/r"},))
    await catalog.rewrite(later)
    assert names(place) == ["moment-n-0a1b2c3d.Mmr-PAaIZmia.json"]  # it is found from its branch, too
    assert read_records([str(place)]) == ((later,), ())


async def test_rewrite_leaves_the_old_one_whole_when_it_cannot_be_written(place, catalog):
    moment = await catalog.to_moment(await catalog.write_intent(intent(), str(place)))
    with pytest.raises(InvalidTarget, match="is not a valid snapshot name"):
        await catalog.rewrite(replace(moment, name="../x"))
    place.chmod(0o777)
    with pytest.raises(InvalidTarget, match="not trusted"):
        await catalog.rewrite(replace(moment, branches=({"vda": "/d/r"},)))
    place.chmod(0o755)
    assert read_records([str(place)]) == ((moment,), ())
    assert names(place) == [moment.file_name]


async def live(place):
    """Whether the records there are those of clients at work, as another client reads them."""
    records, _ = read_records([str(place)])
    return [record.live for record in records if isinstance(record, IntentRecord)]


async def test_intent_is_locked_until_it_is_finished_or_let_go(place, catalog):
    stored = await catalog.write_intent(intent("one"), str(place))
    await catalog.write_intent(intent("two"), str(place))
    assert await live(place) == [True, True]
    assert await live(place) == [True, True]  # to ask takes no lock
    catalog.let_go({"two"})
    assert await live(place) == [True, False]
    await catalog.finish(stored)
    catalog.let_go()
    assert await live(place) == [False]


async def test_record_that_a_killed_client_did_not_finish_goes_with_the_next_one(place, catalog):
    unfinished = place / ".intent-0a1b2c3d.json.970af554"
    unfinished.write_text("{")
    os.utime(unfinished, (0, 0))
    await catalog.write_intent(intent("one"), str(place))
    assert names(place) == ["intent-one.json"]


@pytest.mark.parametrize("end", ["finish", "moment", "let go", "refused"])
async def test_no_descriptor_is_left_of_a_lock(place, catalog, end):
    before = len(list(Path("/proc/self/fd").iterdir()))
    stored = await catalog.write_intent(intent(chains={"vda": ("/d/b",)}), str(place))
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    match end:
        case "finish":
            await catalog.finish(stored)
        case "moment":
            await catalog.to_moment(stored)
        case "let go":
            catalog.let_go({stored.id})
        case "refused":
            with pytest.raises(TargetExists):
                await catalog.write_intent(intent(), str(place))
            catalog.let_go()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def moment(record_id, overlay, held, *below, place, created="2024-05-01T12:00:00+00:00", disk="vda"):
    chain = {disk: tuple(f"{place}/{file}" for file in (held, *below))}
    made = replace(intent(record_id, chains=chain, overlays={disk: f"{place}/{overlay}"}), created=created)
    return replace(moment_of(made), directory=f"{place}/base.qmpsnap")


def put(record):
    Path(record.directory).mkdir(exist_ok=True)
    (Path(record.directory) / record.file_name).write_text(to_json(record))


def near(place, *files):
    records, bad = read_records([f"{place}/base.qmpsnap"], near=[f"{place}/{file}" for file in files])
    assert bad == ()
    return [record.id for record in records]


def test_records_are_read_that_the_machines_files_lead_to(place):
    family = [
        moment("a1", "one", "base", place=place),
        moment("a2", "two", "one", "base", place=place),  # left aside by a revert
        moment("a3", "three", "two", "one", "base", place=place),
    ]
    foreign = [moment("b1", "c1", "c0", "base", place=place), moment("b2", "c2", "c1", "c0", place=place)]
    for record in (*family, *foreign):
        put(record)
    assert near(place, "one", "base") == ["a1", "a2", "a3"]
    assert near(place, "three", "two", "base") == ["a1", "a2", "a3"]
    # What the shared base image holds may have been taken from it, and is looked at, too.
    assert near(place, "c1", "c0") == ["a1", "b1", "b2"]
    assert near(place, "other") == []


def test_a_record_of_many_layers_is_read_always(place):
    branches = tuple({"vda": f"{place}/r{number}"} for number in range(30))
    record = replace(moment("a1", "one", "base", place=place), branches=branches)
    assert record.file_name == "moment-n-a1.any.json"
    put(record)
    assert near(place, "r17") == near(place, "other") == ["a1"]


async def written(catalog, overlay, held, *, place, created="2024-05-02T12:00:00+00:00", **more):
    made = {"vda": f"{place}/{overlay}"} | {disk: f"{place}/{one[0]}" for disk, one in more.items()}
    chains = {"vda": (f"{place}/{held}",)} | {disk: (f"{place}/{one[1]}",) for disk, one in more.items()}
    new = replace(intent("new", chains=chains, overlays=made), created=created)
    return await catalog.to_moment(await catalog.write_intent(new, f"{place}/base.qmpsnap"))


async def test_records_that_nothing_needs_go_with_the_next_one(place, catalog):
    (place / "base").touch()
    (place / "kept").touch()
    (place / "held").touch()
    put(moment("gone", "gone1", "base", place=place))  # its overlay is missing, and base was written to since
    # of other machines, of which nothing is left
    put(moment("nothing", "gone2", "gone3", place=place, created="2024-04-01T12:00:00+00:00"))
    put(moment("moved", "gone7", "gone8", place=place))  # its images may have been moved, and may come back
    put(moment("there", "kept", "base", place=place))
    put(moment("good", "gone4", "held", place=place))  # the layer that holds it may be good yet
    put(moment("later", "gone5", "base", place=place, created="2024-05-03T12:00:00+00:00"))
    elsewhere = moment("away", "gone6", "base", place=place)
    put(replace(elsewhere, overlays={"vda": "/mnt/gone6"}))  # may be a file system that is not mounted
    await written(catalog, "over", "base", place=place)
    records, _ = read_records([f"{place}/base.qmpsnap"])
    assert sorted(record.id for record in records) == ["away", "good", "later", "moved", "new", "there"]


async def test_other_disks_lead_to_a_moments_record_until_it_goes(place, catalog):
    record = await written(catalog, "over", "base", place=place, vdb=("over-b", "data"))
    assert names(place) == ["base.qmpsnap", "data.qmpsnap"]
    assert read_records([f"{place}/data.qmpsnap"], near=[f"{place}/over-b"]) == ((record,), ())
    await catalog.link(f"{place}/copy.qmpsnap", record.directory)
    await catalog.link(f"{place}/copy.qmpsnap", record.directory)
    assert read_records([f"{place}/copy.qmpsnap"]) == ((record,), ())
    await catalog.rewrite(replace(record, continued=({"vda": f"{place}/copy"},)))
    (found,) = read_records([f"{place}/copy.qmpsnap"], near=[f"{place}/copy"])[0]
    await catalog.finish(found)
    assert names(place) == []


async def test_a_link_to_what_is_no_directory_of_records_is_not_followed(place, catalog, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    put(replace(moment("a1", "one", "base", place=place), directory=str(hidden)))
    (place / "base.qmpsnap").mkdir()
    (place / "base.qmpsnap" / "elsewhere-00000000").symlink_to(hidden)
    assert near(place, "one") == []


async def test_records_in_a_directory_of_the_callers_own_need_no_links(place, catalog, tmp_path):
    made = {"vda": f"{place}/o", "vdb": f"{place}/p"}
    chains = {"vda": (f"{place}/base",), "vdb": (f"{place}/data",)}
    await catalog.to_moment(
        await catalog.write_intent(intent(chains=chains, overlays=made), f"{tmp_path}/own")
    )
    assert names(place) == []


def led_to(place, there, gone=0):
    """How many of so many directories are read that links lead to, among links to some that are no more."""
    copy = place / "copy.qmpsnap"
    copy.mkdir()
    for number in range(there + gone):
        directory = place / f"{number}.qmpsnap"
        (copy / f"elsewhere-{number:08x}").symlink_to(directory)
        if number < there:
            put(replace(moment(f"{number:02}", "over", "base", place=place), directory=str(directory)))
    records, bad = read_records([str(copy)])
    assert bad == ()
    return len(records)


def test_links_that_lead_nowhere_hide_none_that_leads_to_records(place):
    assert led_to(place, 20, gone=200) == 20


def test_directories_that_several_links_lead_to_are_read_once(place):
    """Each is opened once, and closed."""
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    every = [f"{place}/{name}.qmpsnap" for name in "abc"]
    for directory in every:
        put(replace(moment("1", "over", "base", place=place), directory=directory))
        for number, to in enumerate(every):
            (Path(directory) / f"elsewhere-{number:08x}").symlink_to(to)
    assert len(read_records(every[:1])[0]) == 3
    assert len(read_records(every)[0]) == 3
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_links_are_followed_to_so_many_directories(place):
    assert led_to(place, 99) == 63  # and that which was asked for


def once(monkeypatch, name, meanwhile):
    """Let something happen right before the first call of that function of `os`."""
    call, left = getattr(os, name), [meanwhile]

    def called(*args, **options):
        while left:
            left.pop()()
        return call(*args, **options)

    monkeypatch.setattr(os, name, called)


async def test_a_link_is_made_again_that_is_removed_as_another_client_counts_on_it(
    place, catalog, monkeypatch
):
    first = await written(catalog, "over", "base", place=place, vdb=("over-b", "data"))
    removed = os.rmdir

    def and_made_again(directory, **options):
        removed(directory, **options)
        if directory == first.directory:
            put(moment("a2", "over2", "base", place=place))  # whose link is there already

    monkeypatch.setattr(os, "rmdir", and_made_again)
    await catalog.finish(first)
    monkeypatch.undo()
    assert [record.id for record in read_records([f"{place}/data.qmpsnap"])[0]] == ["a2"]


async def test_a_directory_is_made_again_that_another_client_removes_as_it_is_written_to(
    place, catalog, monkeypatch
):
    directory = f"{place}/base.qmpsnap"
    os.mkdir(directory)  # noqa: PTH102
    once(monkeypatch, "urandom", lambda: os.rmdir(directory))  # noqa: PTH106
    stored = await catalog.write_intent(intent(), directory)
    os.mkdir(f"{place}/copy.qmpsnap")  # noqa: PTH102
    once(monkeypatch, "symlink", lambda: os.rmdir(f"{place}/copy.qmpsnap"))  # noqa: PTH106
    await catalog.link(f"{place}/copy.qmpsnap", directory)
    assert read_records([f"{place}/copy.qmpsnap"])[0] == (held(stored),)


def overlay(file, mark):
    image = empty_qcow2(virtual_size=1 << 20, backing="/d/base", backing_format="qcow2", mark=mark)
    file.write_bytes(image.parts[0][1])
    return f"{mark.hex()}-{file.stat().st_ino}"


async def test_a_moment_has_the_marks_of_what_holds_it_and_of_what_goes_on_from_it(place, catalog):
    held, began = overlay(place / "s1", b"1" * 16), overlay(place / "s2", b"2" * 16)
    files = {name: f"{place}/{name}" for name in ("s1", "s2")}
    taken = intent(chains={"vda": (files["s1"], "/d/base")}, overlays={"vda": files["s2"]})
    moment = await catalog.to_moment(await catalog.write_intent(taken, str(place)))
    assert moment.marks == {files["s1"]: held, files["s2"]: began}


async def test_a_moment_that_is_rewritten_keeps_the_marks_of_its_layers_under_names_of_before(place, catalog):
    mark = overlay(place / "new", b"1" * 16)
    moment = await catalog.to_moment(await catalog.write_intent(intent(), str(place)))
    gone = f"{'9' * 32}-9"
    marks = {"/d/old": mark, "/d/o": f"{'8' * 32}-8", "/d/nothing": gone}
    await catalog.rewrite(
        replace(moment, covered={"vda": f"{place}/new"}, chains={}, formats={}, marks=marks)
    )
    ((now,), _) = read_records([str(place)])
    assert isinstance(now, MomentRecord)
    assert now.marks == {f"{place}/new": mark, "/d/old": mark, "/d/o": f"{'8' * 32}-8"}


async def test_of_two_clients_one_claims_an_interrupted_operation(place, catalog, monkeypatch):
    monkeypatch.setattr("qmpsnap.run.catalog._LOCK_SECONDS", 0.05)
    stored = await catalog.write_intent(intent(), str(place))
    other = Catalog()
    with pytest.raises(Busy, match="another client is finishing 0a1b2c3d"):
        await other.claim((stored,))
    catalog.let_go()  # it was interrupted
    await other.claim((stored,))
    assert read_records([str(place)]) == ((held(stored),), ())
    with pytest.raises(Busy):
        await catalog.claim((stored,))
    other.let_go({stored.id})
    await catalog.claim((stored,))
    await catalog.finish(stored)
    with pytest.raises(Busy, match="or has finished it"):
        await other.claim((stored,))


async def test_claim_is_refused_when_the_record_is_another_by_now(place, catalog, monkeypatch):
    """Another client ends it, and an operation of the same id begins, before it is locked."""
    stored = await catalog.write_intent(intent(), str(place))
    catalog.let_go()
    file = place / stored.file_name

    def replaced(descriptor, seconds):
        file.rename(file.with_suffix(".old"))
        file.write_bytes(file.with_suffix(".old").read_bytes())

    monkeypatch.setattr("qmpsnap.run.catalog.lock", replaced)
    with pytest.raises(Busy):
        await catalog.claim((stored,))


async def test_claim_is_not_refused_where_there_are_no_locks(place, catalog, monkeypatch):
    stored = await catalog.write_intent(intent(), str(place))

    def none(descriptor, seconds):
        raise OSError(errno.ENOTSUP, "no locks")

    monkeypatch.setattr("qmpsnap.run.catalog.lock", none)
    await Catalog().claim((stored,))
