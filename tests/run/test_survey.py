import os
import shutil
import socket
from pathlib import Path

import pytest
from msgspec.structs import replace

from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.files import Ask, BackingLink
from qmpsnap.model.record import IntentRecord, MomentRecord
from qmpsnap.model.record_file import from_json, to_json
from qmpsnap.run.image_headers import file_mark, header_with_status
from qmpsnap.run.survey import look
from qmpsnap.run.view_lock import hold
from tests.headers import qcow2_bytes
from tests.model.records import CHECKPOINT


@pytest.fixture
def place(tmp_path):
    """A directory, and a function that makes an image in it; both by their real paths."""
    directory = tmp_path.resolve() / "d"
    directory.mkdir()
    (directory / "base").write_bytes(b"raw data")
    return directory


def image(path, backing=None, **fields):
    path.write_bytes(qcow2_bytes(backing=backing, **fields))
    return str(path)


def fact(path):
    return look(Ask(files=(str(path),))).files[str(path)]


def survey(place, *files):
    return look(Ask(files=tuple(map(str, files or [place / "base"])), survey=(str(place),)))


def test_survey_tells_what_a_client_of_ours_reads(place):
    file = str(place / "base")
    reads = hold(file, "c1")
    asked = Ask(readers=((file, "c1"), (file, "c2"), (f"{place}/none", "c1")))
    assert look(asked).readers == {(file, "c1")}
    assert reads is not None
    os.close(reads)
    assert look(asked).readers == frozenset()


def test_fact_tells_a_regular_file_with_its_header(place):
    top = image(place / "top", "base", backing_format="raw")
    found = fact(top)
    status = (place / "top").stat()
    assert (found.kind, found.size, found.modified) == ("regular", status.st_size, status.st_mtime)
    assert (found.device, found.inode) == (status.st_dev, status.st_ino)
    assert found.header is not None
    assert (found.real, found.backing, found.header.backing_format) == (top, str(place / "base"), "raw")
    assert found.problem == ""


def test_survey_reads_no_file_of_the_kernel_that_an_image_names(place, monkeypatch):
    image(place / "top", "/proc/self/status", backing_format="raw")
    image(place / "other", "/sys/kernel/notes", backing_format="raw")
    (place / "link").symlink_to("/proc/self/stat")
    image(place / "third", "link", backing_format="raw")
    read = []

    def noted(path):
        read.append(path)
        return header_with_status(path)

    monkeypatch.setattr("qmpsnap.run.survey.header_with_status", noted)
    look(Ask(survey=(str(place),)))
    assert sorted(read) == [f"{place}/{name}" for name in ("base", "other", "third", "top")]


def test_fact_tells_what_is_no_regular_file(place):
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere")
    (place / "link").symlink_to("base")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(place / "socket"))
    names = ["fifo", "socket", "loop", "dangling", "link", "missing", "base/below", "."]
    assert {name: fact(f"{place}/{name}").kind for name in names} == {
        "fifo": "other",
        "socket": "other",
        "loop": "symlink",
        "dangling": "symlink",
        "link": "regular",
        "missing": "missing",
        "base/below": "missing",
        ".": "directory",
    }


def test_fact_gives_the_real_path_of_a_symlink(place):
    (place / "link").symlink_to("base")
    assert fact(place / "link").real == str(place / "base")


def test_fact_says_so_when_a_header_is_broken(place):
    (place / "x").write_bytes(qcow2_bytes(backing="base")[:80])
    found = fact(place / "x")
    assert (found.kind, found.header, found.problem) == ("regular", None, "truncated at byte 80")


def test_fact_says_so_when_a_name_can_be_none():
    assert fact("/d/a\0b").problem == "embedded null byte"
    assert fact("/" + "x" * 300).problem == "the name is too long for the file system"


def test_look_tells_where_files_can_be_made(place):
    made = look(Ask(directories=(str(place), str(place / "no"), str(place / "base")))).directories
    assert made[str(place)].writable
    assert made[str(place)].free_bytes > 0
    assert made[str(place / "no")].problem == "no such file or directory"
    assert made[str(place / "base")].problem == "not a directory"
    assert [fact.exists for fact in made.values()] == [True, False, False]


def test_look_tells_a_directory_in_which_we_cannot_write():
    found = look(Ask(directories=("/proc/sys",))).directories["/proc/sys"]  # closed to root too
    assert (found.exists, found.writable, found.problem) == (True, False, "permission denied")


@pytest.mark.parametrize(
    "recorded",
    ["base", "{d}/base", "./base", "../d/base", "file:{d}/base", 'json:{{"file.filename":"{d}/base"}}'],
)
def test_survey_finds_an_overlay_however_it_spells_its_base(place, recorded):
    top = image(place / "top", recorded.format(d=place))
    assert survey(place).backed_by(str(place / "base")) == (top,)


def test_survey_finds_an_overlay_that_names_its_base_by_a_symlink(place):
    (place / "link").symlink_to("base")
    top = image(place / "top", "link")
    assert survey(place).backed_by(str(place / "base")) == (top,)


def test_survey_finds_an_overlay_when_the_base_is_asked_for_by_a_symlink(place):
    (place / "link").symlink_to("base")
    top = image(place / "top", "base")
    assert survey(place, place / "link").backed_by(str(place / "link")) == (top,)


def test_survey_finds_an_overlay_that_names_its_base_by_a_hard_link(place):
    (place / "hard").hardlink_to(place / "base")
    top = image(place / "top", "hard")
    assert survey(place).backed_by(str(place / "base")) == (top,)


def test_survey_names_a_file_of_the_chain_as_asked_when_it_has_hard_links(place):
    top = image(place / "top", "base")
    (place / "a-link").hardlink_to(place / "top")
    found = survey(place, place / "base", top)
    assert found.backed_by(str(place / "base"), without=(top,)) == ()


def test_survey_resolves_a_relative_name_from_a_symlink_to_the_overlay(place, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    top = image(other / "top", "base")
    (place / "link").symlink_to(top)
    assert survey(place).backing_links == (BackingLink(str(other.resolve() / "top"), str(place / "base")),)


def test_survey_goes_down_through_images_that_lie_elsewhere(place, tmp_path):
    other = tmp_path.resolve() / "other"
    other.mkdir()
    mid = image(other / "mid", str(place / "base"))
    top = image(place / "top", mid)
    assert survey(place).backed_by(str(place / "base")) == tuple(sorted([mid, top]))


def test_survey_ends_when_the_headers_make_a_loop(place):
    a, b = image(place / "a", "b"), image(place / "b", "a")
    assert survey(place).backing_links == (BackingLink(a, b), BackingLink(b, a))


def test_survey_leaves_out_what_holds_no_moment_any_more(place):
    image(place / "s1.invalid", "base")
    (place / "s2.invalid").write_bytes(b"QFI\xfb")
    image(place / "s1.invalid.2", "base")
    (place / "link").symlink_to("s1.invalid")
    found = survey(place)
    assert (found.backing_links, found.unreadable) == ((), ())


def test_survey_reads_both_versions_of_qcow2(place):
    image(place / "x", "base", version=3)
    image(place / "y", "base", version=2)
    assert survey(place).backed_by(str(place / "base")) == (str(place / "x"), str(place / "y"))


@pytest.mark.parametrize("pad", [5_000, 100_000])
def test_survey_reads_on_when_a_header_is_long(place, pad):
    top = image(place / "top", "base", pad=pad, cluster_bits=21)
    assert survey(place).backed_by(str(place / "base")) == (top,)


def test_survey_lists_what_it_cannot_read(place):
    (place / "broken").write_bytes(b"QFI\xfb\0\0\0\x09")
    found = look(Ask(survey=(str(place), str(place / "no"))))
    assert found.unreadable == (
        f"{place}/broken: qcow2 of unknown version 9",
        f"{place}/no: no such file or directory",
    )
    assert found.looked_in == (str(place),)


def test_survey_opens_no_fifo_and_passes_over_what_is_no_file(place):
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    (place / "dangling").symlink_to("nowhere")
    (place / "below").mkdir()
    image(place / "below" / "x", "../base")
    found = survey(place)
    assert (found.backing_links, found.unreadable) == ((), ())


def test_survey_opens_nothing_but_files_when_a_header_names_something_else(place):
    with socket.socket(socket.AF_UNIX) as unix:  # to open it is an error, which would be listed
        unix.bind(str(place / "socket"))
    top = image(place / "top", "socket")
    found = survey(place)
    assert (found.backing_links, found.unreadable) == ((BackingLink(top, f"{place}/socket"),), ())


def test_survey_says_what_backs_an_image_when_that_is_gone(place):
    top = image(place / "top", "gone")
    found = survey(place)
    assert (found.backing_links, found.unreadable) == ((BackingLink(top, f"{place}/gone"),), ())


def test_survey_looks_into_a_directory_by_its_real_path(place):
    (place.parent / "link").symlink_to("d")
    top = image(place / "top", "base")
    found = look(Ask(files=(f"{place}/base",), survey=(f"{place.parent}/link", str(place))))
    assert (found.looked_in, found.backed_by(f"{place}/base")) == ((str(place),), (top,))


def test_look_reads_records(place):
    record = IntentRecord("0a1b2c3d", "commit", "2024-05-01T12:00:00+00:00", directory=str(place))
    (place / record.file_name).write_text(to_json(record))
    (place / "intent-half.json").write_text("{")
    found = look(Ask(records=(str(place),)))
    assert found.records == (record,)
    assert [line.split(": ")[0] for line in found.bad_records] == [f"{place}/intent-half.json"]


def test_survey_keeps_names_that_are_no_utf_8(place):
    name = os.fsdecode(os.fsencode(place) + b"/b\xff")
    Path(name).write_bytes(b"raw")
    top = image(place / "top", "b\udcff")
    assert survey(place, name).backed_by(name) == (top,)


def marked(file, mark, backing):
    image = empty_qcow2(virtual_size=1 << 20, backing=str(backing), backing_format="qcow2", mark=mark)
    file.write_bytes(image.parts[0][1])


@pytest.fixture
def overlays(place):
    """The snapshots one and two in the files s1 and s2, and the files that a survey reads the records of."""
    (place / "base.qmpsnap").mkdir()
    (place / "base.qcow2").write_bytes(qcow2_bytes())
    for name, held, mark in (("s1", "base", b"1" * 16), ("s2", "s1", b"2" * 16)):
        file = place / f"{name}.qcow2"
        marked(file, mark, place / f"{held}.qcow2")
        record = MomentRecord(
            f"id-{name}",
            f"at-{name}",
            "2024-05-01T12:00:00+00:00",
            {"vda": str(file)},
            {"vda": f"{place}/{held}.qcow2"},
            directory=f"{place}/base.qmpsnap",
            marks={str(file): f"{mark.hex()}-{file.stat().st_ino}"},
        )
        (place / "base.qmpsnap" / record.file_name).write_text(to_json(record))
    return place


def held(place, *chain, survey=False):
    """Where each snapshot is, and what began there, as records tell of a machine with that chain."""
    files = tuple(f"{place}/{name}.qcow2" for name in chain)
    found = look(
        Ask(files=files, records=(f"{place}/base.qmpsnap",), survey=(str(place),) if survey else ()), files
    )
    names = {
        record.name: (record.covered["vda"], record.overlays["vda"])
        for record in found.records
        if isinstance(record, MomentRecord)
    }
    return {name: tuple(Path(file).stem for file in pair) for name, pair in sorted(names.items())}, dict(
        found.renamed.files
    )


def test_survey_recognises_an_active_layer_that_was_renamed(overlays):
    expected = {"at-s1": ("base", "s1"), "at-s2": ("s1", "s2")}
    assert held(overlays, "s2", "s1", "base") == (expected, {})
    (overlays / "s2.qcow2").rename(overlays / "disk.qcow2")
    renamed = {f"{overlays}/s2.qcow2": f"{overlays}/disk.qcow2"}
    assert held(overlays, "disk", "s1", "base") == ({**expected, "at-s2": ("s1", "disk")}, renamed)
    assert held(overlays, "disk") == ({**expected, "at-s2": ("s1", "disk")}, renamed)


def test_survey_recognises_a_layer_beside_that_was_renamed(overlays):
    (overlays / "s1.qcow2").rename(overlays / "old.qcow2")
    expected = {"at-s1": ("base", "old"), "at-s2": ("old", "s2")}
    assert held(overlays, "s2", survey=True)[0] == expected


def test_survey_takes_no_copy_for_an_overlay_even_if_that_is_gone(overlays):
    shutil.copy(overlays / "s2.qcow2", overlays / "copy.qcow2")
    assert held(overlays, "copy", survey=True)[1] == {}
    (overlays / "s2.qcow2").rename(overlays / "disk.qcow2")
    assert held(overlays, "copy", survey=True)[1] == {f"{overlays}/s2.qcow2": f"{overlays}/disk.qcow2"}
    (overlays / "disk.qcow2").unlink()
    assert held(overlays, "copy", survey=True)[1] == {}


def test_survey_renames_no_overlay_that_has_its_name_and_another(overlays):
    (overlays / "disk.qcow2").hardlink_to(overlays / "s2.qcow2")
    assert held(overlays, "disk", "s1", "base")[1] == {}


def test_survey_takes_no_file_that_a_commit_left_for_a_renamed_layer(overlays):
    (overlays / "s2.qcow2").rename(overlays / "s2.qcow2.invalid")
    assert held(overlays, "s1", "base", survey=True)[1] == {}


def swap(place, one, other):
    (place / f"{one}.qcow2").rename(place / "between")
    (place / f"{other}.qcow2").rename(place / f"{one}.qcow2")
    (place / "between").rename(place / f"{other}.qcow2")


def test_survey_takes_no_overlay_for_the_one_that_had_its_name(overlays):
    swap(overlays, "s1", "s2")
    expected = {"at-s1": ("base", "s2"), "at-s2": ("s2", "s1")}
    assert held(overlays, "s1", "s2", "base")[0] == expected
    assert held(overlays, "base", survey=True)[0] == expected


@pytest.mark.parametrize("survey", [False, True])
def test_survey_misses_an_overlay_whose_name_another_image_has(overlays, survey):
    shutil.copy(overlays / "s1.qcow2", overlays / "s2.qcow2")
    missing = f"s2.qcow2.missing-{b'2222'.hex()}"
    found, renamed = held(overlays, "s1", "base", survey=survey)
    assert found["at-s1"] == ("base", "s1")
    assert renamed == {f"{overlays}/s2.qcow2": f"{overlays}/{missing}"}
    assert found["at-s2"] == ("s1", Path(missing).stem)


def test_survey_finds_an_overlay_beside_the_image_that_has_its_name(overlays):
    (overlays / "s2.qcow2").rename(overlays / "mid.qcow2")
    shutil.copy(overlays / "s1.qcow2", overlays / "s2.qcow2")
    assert held(overlays, "s1", "base")[0] == {"at-s1": ("base", "s1"), "at-s2": ("s1", "mid")}


def test_survey_knows_the_layer_that_holds_a_snapshot_by_the_mark_in_its_own_record(overlays):
    for file in (overlays / "base.qmpsnap").glob("moment-at-*"):
        record = from_json(file.read_text(), directory=str(file.parent))
        assert isinstance(record, MomentRecord)
        file.unlink()
        mark = file_mark(f"{overlays}/s1.qcow2")
        if record.name == "at-s1":  # it is written anew, with the name that the layer has by then
            now = replace(
                record,
                overlays={"vda": f"{overlays}/mid.qcow2"},
                marks={f"{overlays}/mid.qcow2": mark},
            )
        else:
            now = replace(record, marks={**record.marks, f"{overlays}/s1.qcow2": mark})
        (file.parent / now.file_name).write_text(to_json(now))
    (overlays / "s1.qcow2").rename(overlays / "mid.qcow2")
    marked(overlays / "s2.qcow2", b"2" * 16, overlays / "mid.qcow2")
    assert held(overlays, "s2", "mid", "base")[0] == {"at-s1": ("base", "mid"), "at-s2": ("mid", "s2")}
    assert held(overlays, "mid", "base")[0] == {"at-s1": ("base", "mid"), "at-s2": ("mid", "s2")}


def copied(place, moved):
    for name in ("base", "s1", "s2"):
        shutil.copy(moved / f"{name}.qcow2", place)


def strange(place, _):
    for name in ("base", "s1", "s2"):
        (place / f"{name}.qcow2").write_bytes(qcow2_bytes())


@pytest.mark.parametrize("old", [None, copied, strange])
@pytest.mark.parametrize(
    ("chain", "renamed"),
    [
        (("s2", "s1", "base"), {"base", "s1", "s2"}),
        (("s1", "base"), {"base", "s1", "s2"}),
        (("base",), set()),  # a base image does not show that it is the one that was here
    ],
)
def test_survey_finds_the_layers_of_a_directory_that_was_moved(place, overlays, old, chain, renamed):
    """Even if a copy, or other images, are at the old place: what these are called shows nothing."""
    moved = place / "moved"
    moved.mkdir()
    for file in sorted(overlays.iterdir()):
        if file != moved:
            file.rename(moved / file.name)
    if old is not None:
        old(place, moved)
    assert held(moved, *chain)[1] == {f"{place}/{name}.qcow2": f"{moved}/{name}.qcow2" for name in renamed}


def test_survey_takes_no_overlay_that_is_used_for_what_has_its_old_name(overlays):
    """The overlay alone was moved, and a copy lies where it was."""
    (overlays / "other").mkdir()
    now = (overlays / "s2.qcow2").rename(overlays / "other" / "disk.qcow2")
    shutil.copy(now, overlays / "s2.qcow2")
    assert held(overlays, "other/disk", "s1", "base")[1] == {f"{overlays}/s2.qcow2": str(now)}
    assert held(overlays, "s2", "s1", "base")[1] == {}  # it was copied back


@pytest.mark.parametrize("old", ["none", "a copy", "the file"])
def test_survey_finds_the_memory_of_a_directory_that_was_moved(place, overlays, old):
    """By its inode; a copy at the old place is another machine's, and the file may have stayed there."""
    memory = overlays / "s1.memory"
    memory.write_bytes(b"memory")
    (file,) = (overlays / "base.qmpsnap").glob("moment-at-s1*")
    record = from_json(file.read_text(), directory=str(file.parent))
    assert CHECKPOINT.state is not None
    state = replace(CHECKPOINT.state, file=str(memory), inode=memory.stat().st_ino)
    file.write_text(to_json(replace(record, state=state)))
    moved = place / "moved"
    moved.mkdir()
    for entry in sorted(overlays.iterdir()):
        if entry != moved and (old, entry) != ("the file", memory):
            entry.rename(moved / entry.name)
    if old == "a copy":
        shutil.copy(moved / "s1.memory", memory)
    chain = tuple(f"{moved}/{name}.qcow2" for name in ("s2", "s1", "base"))
    records = look(Ask(files=chain, records=(f"{moved}/base.qmpsnap",)), chain).records
    (found,) = (one.state.file for one in records if isinstance(one, MomentRecord) and one.state)
    assert found == str(memory if old == "the file" else moved / "s1.memory")
