from msgspec.structs import replace

from qmpsnap.model.files import (
    Ask,
    BackingLink,
    FileFact,
    Files,
)
from tests.each import each


def standing(*pairs):
    return Files(shared=True, backing_links=tuple(BackingLink(file, on) for file, on in pairs))


def test_on_names_all_that_are_backed_by_a_file_through_others():
    files = standing(("/m", "/base"), ("/t", "/m"), ("/u", "/m"), ("/x", "/other"))
    assert files.backed_by("/base") == ("/m", "/t", "/u")


def test_on_does_not_pass_through_the_rest_of_a_chain():
    files = standing(("/m", "/base"), ("/t", "/m"), ("/m2", "/base"), ("/t2", "/m2"))
    assert files.backed_by("/base", without=("/m", "/t")) == ("/m2", "/t2")


def test_on_ends_when_the_headers_make_a_loop():
    assert standing(("/a", "/b"), ("/b", "/a")).backed_by("/a") == ("/b",)


def test_on_takes_every_name_that_was_asked_for():
    fact = FileFact("regular", real="/base")
    files = Files(shared=True, files={"/link": fact}, backing_links=(BackingLink("/o", "/base"),))
    assert files.backed_by("/link") == ("/o",)
    assert files.backed_by("/base", without=("/link",)) == ("/o",)


def test_same_compares_files_and_not_their_names():
    link, base = FileFact("regular", real="/base"), FileFact("regular", real="/base")
    files = Files(shared=True, files={"/link": link, "/base": base})
    assert files.same("/link", "/base")
    assert not files.same("/link", "/other")


@each(("kind", "taken"), [("missing", False), ("symlink", True), ("regular", True)])
def test_taken_tells_a_name_in_use(kind, taken):
    assert FileFact(kind).taken is taken


def test_ask_names_each_path_once_in_the_order_given() -> None:
    twice = Ask(files=("/b", "/a", "/b"), records=("/r", "/r"))
    assert (twice.files, twice.records) == (("/b", "/a"), ("/r",))
    assert replace(twice, survey=("/s", "/s")).survey == ("/s",)
