from msgspec.structs import replace

from qmpsnap.model.layer_renames import (
    Move,
    Renames,
    find_moves,
    find_renames,
    is_other,
    moved_files,
    with_paths,
)
from qmpsnap.model.record import MomentRecord
from tests.each import each
from tests.model.records import COMMIT, REVERTED

A, B, C = (f"{digit * 32}-{number}" for number, digit in enumerate("abc", 1))


def record(name: str, **marks: str) -> MomentRecord:
    return replace(REVERTED, id=name, marks={f"/d/{file}": mark for file, mark in marks.items()})


@each(
    ("marked", "there", "marks", "files"),
    [
        # Nothing has changed.
        ({A: {"/d/a"}, B: {"/d/b"}}, {"/d/a": A, "/d/b": B}, {}, {}),
        # The two have exchanged their names.
        (
            {A: {"/d/b"}, B: {"/d/a"}},
            {"/d/a": B, "/d/b": A},
            {A: "/d/b", B: "/d/a"},
            {"/d/a": "/d/b", "/d/b": "/d/a"},
        ),
        # One has another name, and nothing has its own.
        ({A: {"/d/x"}, B: {"/d/b"}}, {"/d/b": B}, {A: "/d/x"}, {"/d/a": "/d/x"}),
        # Another image has its name, and itself it is not found.
        (
            {B: {"/d/b"}, C: {"/d/a"}},
            {"/d/a": C, "/d/b": B},
            {A: f"/d/a.missing-{'a' * 8}"},
            {"/d/a": f"/d/a.missing-{'a' * 8}"},
        ),
        # It is gone, or nobody can tell which of two it is.
        ({B: {"/d/b"}}, {"/d/b": B}, {}, {}),
        ({A: {"/d/x", "/d/y"}, B: {"/d/b"}}, {"/d/b": B}, {}, {}),
        # It was copied back, or rewritten by another program.
        ({B: {"/d/b"}}, {"/d/a": f"{'a' * 32}-99", "/d/b": ""}, {}, {}),
    ],
)
def test_layers_are_found_by_their_marks(
    marked: dict[str, set[str]], there: dict[str, str], marks: dict[str, str], files: dict[str, str]
) -> None:
    assert find_renames((COMMIT, record("1", a=A), record("2", b=B)), marked, there) == Renames(marks, files)


def test_a_name_that_another_record_uses_rightly_leads_nowhere_else() -> None:
    records = (record("1", a=A), record("2", a=B))
    found = find_renames(records, {A: {"/d/x"}, B: {"/d/a"}}, {"/d/a": B, "/d/x": A})
    assert found == Renames({A: "/d/x"}, {})


def test_the_name_of_before_leads_there_for_records_without_the_mark() -> None:
    """As in the chain of a moment further up, once the record of the layer has its new name."""
    found = find_renames((record("1", x=A, a=A),), {A: {"/d/x"}}, {"/d/x": A})
    assert found == Renames({A: "/d/x"}, {"/d/a": "/d/x"})
    above = replace(REVERTED, chains={"vda": ("/d/b", "/d/a", "/d/base")}, marks={"/d/b": B})
    assert with_paths(above, found).chains == {"vda": ("/d/b", "/d/x", "/d/base")}


@each(
    ("found", "other"),
    [("", False), (A, False), (f"{'a' * 32}-99", False), (B, True), (f"{'b' * 32}-1", True)],
)
def test_an_image_is_another_layer_by_its_mark_alone(found: str, other: bool) -> None:
    assert is_other(found, A) is other


def test_with_paths_gives_every_file_its_present_name() -> None:
    marked = replace(REVERTED, continued=({"vda": "/d/c"},), marks={"/d/o": A, "/d/r3": B})
    renamed = with_paths(
        marked,
        Renames(
            {A: "/n/o", B: "/n/r"},
            {"/d/a": "/n/a", "/d/c": "/n/c", "/d/x": "/n/x"},
        ),
    )
    assert (renamed.overlays, renamed.covered) == (
        {"vda": "/n/o", "vdb": "/d/p"},
        {"vda": "/n/a", "vdb": "/d/b"},
    )
    assert renamed.chains == {"vda": ("/n/a", "/d/base"), "vdb": ("/d/b",)}
    assert renamed.branches == ({"vda": "/d/r1", "vdb": "/d/r2"}, {"vda": "/n/r"})
    assert renamed.continued == ({"vda": "/n/c"},)
    assert renamed.marks == {"/d/o": A, "/n/o": A, "/d/r3": B, "/n/r": B}


@each(
    "renames",
    [
        Renames(),
        Renames({C: "/n/x"}, {"/d/x": "/n/x"}),
        Renames({A: "/d/o"}),
        Renames({B: "/d/o"}, {"/d/o": "/n/x"}),
    ],
)
def test_with_paths_leaves_a_record_whose_own_marks_say_that_it_is_right(renames: Renames) -> None:
    right = replace(REVERTED, marks={"/d/o": A})
    assert with_paths(right, renames) is right


def test_with_paths_twice_is_with_paths_once() -> None:
    exchanged = Renames({A: "/d/a", B: "/d/o"}, {"/d/o": "/d/a", "/d/a": "/d/o"})
    once = with_paths(replace(REVERTED, marks={"/d/o": A, "/d/a": B}), exchanged)
    assert (once.overlays["vda"], once.covered["vda"]) == ("/d/a", "/d/o")
    assert once.marks == {"/d/a": A, "/d/o": B}
    assert with_paths(once, exchanged) is once


def test_renames_seen_later_win() -> None:
    both = Renames({A: "/1", B: "/2"}, {"/a": "/1"}) | Renames({A: "/3"}, {"/a": "/3", "/b": "/4"})
    assert both == Renames({A: "/3", B: "/2"}, {"/a": "/3", "/b": "/4"})


# A moment of two disks, whose record lies beside the first one's base.
TWO = MomentRecord(
    "two",
    "two",
    "2024-05-01T12:00:00+00:00",
    {"vda": "/one/a", "vdb": "/two/b"},
    {"vda": "/one/base", "vdb": "/two/base"},
    marks={"/one/a": A, "/two/b": B},
    directory="/one/base.qmpsnap",
)


@each(
    ("marked", "there", "used", "moves"),
    [
        # The machine uses both where they were.
        ({A: {"/one/a"}, B: {"/two/b"}}, {"/one/a": A, "/two/b": B}, {"/one/a", "/two/b"}, {}),
        ({A: {"/one/a"}, B: {"/new/b"}}, {"/one/a": A}, {"/one/a", "/new/b"}, {"/two": Move("/new", False)}),
        # At the old place there is another image, or a copy.
        (
            {A: {"/one/a"}, B: {"/new/b"}},
            {"/one/a": A, "/two/b": ""},
            {"/new/b"},
            {"/two": Move("/new", False)},
        ),
        # The machine uses another one than that; it got another name; or it still is where it was, too.
        ({A: {"/one/a"}, B: {"/new/b"}}, {"/one/a": A}, {"/one/a"}, {}),
        ({A: {"/one/a"}, B: {"/new/c"}}, {"/one/a": A}, {"/new/c"}, {}),
        ({B: {"/new/b"}}, {"/two/b": B}, {"/new/b"}, {}),
        # Both have moved to where the record is.
        (
            {A: {"/one/a"}, B: {"/one/b"}},
            {"/one/a": A},
            {"/one/a", "/one/b"},
            {"/two": Move("/one", True)},
        ),
    ],
)
def test_directory_that_was_moved_is_known_by_a_layer_that_the_machine_uses_there(
    marked: dict[str, set[str]], there: dict[str, str], used: set[str], moves: dict[str, Move]
) -> None:
    assert find_moves([TWO], marked, there, used) == moves


def test_several_new_places_are_none_unless_one_has_the_record() -> None:
    other = replace(TWO, id="other", overlays={"vdb": "/two/c"}, marks={"/two/c": C}, directory="/new/r")
    marked = {B: {"/new/b"}, C: {"/else/c"}}
    assert find_moves([TWO, other], marked, {}, {"/new/b", "/else/c"}) == {}
    known = replace(TWO, directory="/new/base.qmpsnap")
    assert find_moves([known, other], marked, {}, {"/new/b", "/else/c"}) == {"/two": Move("/new", True)}


def test_base_has_moved_with_its_directory_or_where_the_machine_uses_it_now() -> None:
    whole, part = {"/two": Move("/new", True)}, {"/two": Move("/new", False)}
    found = {"/two/base": ("/new/base", 0)}
    assert moved_files([TWO], whole, set()) == found
    assert moved_files([TWO], part, {"/new/b", "/new/base"}) == found
    assert moved_files([TWO], part, {"/new/b", "/two/base"}) == {}  # only the overlay has moved
    assert moved_files([TWO], {}, {"/new/base"}) == {}


def test_layer_that_has_moved_is_not_the_image_that_has_its_name_now() -> None:
    marked, there = {A: {"/one/a"}, B: {"/new/b"}}, {"/one/a": A, "/two/b": ""}
    found = Renames({B: "/new/b"}, {"/two/b": "/new/b"})
    assert find_renames([TWO], marked, there, moves={"/two": Move("/new", False)}) == found
    assert find_renames([TWO], marked, there, moves={"/two": Move("/else", False)}) == Renames()
    gone = find_renames([TWO], {A: {"/one/a"}}, there, moves={"/two": Move("/new", False)})
    assert gone == Renames()  # nothing shows that it has moved, too
    assert find_renames([TWO], {}, there, moves={"/two": Move("/new", True)}).files.keys() == {"/two/b"}


def test_stamps_have_the_present_names_too() -> None:
    stamps = {"/d/a": "1-2-00000000", "/d/base": "3-4-00000000"}
    found = with_paths(replace(record("1", a=A), stamps=stamps), Renames({A: "/d/x"}, {"/d/base": "/e/base"}))
    assert found.stamps == {"/d/x": "1-2-00000000", "/e/base": "3-4-00000000"}
