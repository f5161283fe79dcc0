from __future__ import annotations

import pytest

from qmpsnap.model.empty_image import empty_qcow2
from qmpsnap.model.header import Header, parse_header
from qmpsnap.model.keeper import Keeper, KeptFor, ending, keeper_files, owner_of, owner_text
from tests.each import each

KEEPER = "/d/s1.t1-0123abcd.template.qcow2"
TEMPLATE = KeptFor("template", "/srv/t1", ("/d", "/e"))


def header(owner: bytes, *, backing: str | None = "/d/s1.qcow2") -> Header:
    """That of an empty image, as it is read back."""
    form = "qcow2" if backing is not None else None
    image = empty_qcow2(virtual_size=1 << 20, backing=backing, backing_format=form, owner=owner)
    read = parse_header(image.parts[0][1].ljust(1 << 16, b"\0"))
    assert read is not None
    return read


def test_image_beside_a_layer_is_called_after_the_template() -> None:
    long = "x" * 250
    files = keeper_files(["/d/s1.qcow2", f"/e/{long}.qcow2"], "t1", "0123abcd")
    assert files["/d/s1.qcow2"] == KEEPER
    assert len(files[f"/e/{long}.qcow2"].removeprefix("/e/")) <= 255
    assert {ending(file) for file in files.values()} == {"-0123abcd.template.qcow2"}


def test_header_says_what_needs_the_layer() -> None:
    text = owner_text("template", "/srv/t1", [KEEPER, "/d/b", "/e/c"])
    assert owner_of(KEEPER, header(text)) == TEMPLATE
    many = owner_text("fork", "/tmp/f", (f"/{'x' * 250}/{number}/k" for number in range(10_000)))
    assert len(many) < 1 << 15


@each(
    ("file", "owner", "backing"),
    [
        ("/d/s1.qcow2", owner_text("fork", "/f", [KEEPER]), "/d/s1.qcow2"),  # a guest's disk, by its name
        (KEEPER, b"", "/d/s1.qcow2"),
        (KEEPER, b"{}", "/d/s1.qcow2"),
        (KEEPER, b'{"version": 1, "kind": "other", "directory": "/f"}', "/d/s1.qcow2"),
        (KEEPER, b"\xff", "/d/s1.qcow2"),
        (KEEPER, owner_text("fork", "/f", [KEEPER]), None),
    ],
)
def test_other_image_is_not_taken_for_one(file: str, owner: bytes, backing: str | None) -> None:
    assert owner_of(file, header(owner, backing=backing)) is None


@pytest.mark.parametrize(
    ("keeper", "said"),
    [
        (Keeper(TEMPLATE, "needed", "/d/s1"), "for the template '/srv/t1'"),
        (Keeper(TEMPLATE, "gone", "/d/s1"), "for the template '/srv/t1', which is gone"),
        (
            Keeper(KeptFor("clone", "/srv/c"), "needed", "/d/s1"),
            "for the overlays of a clone in '/srv/c'",
        ),
        (
            Keeper(KeptFor("fork", "/f"), "left", "/d/s1"),
            "left by a fork whose process was killed",
        ),
    ],
)
def test_text_says_what_it_is_for(keeper: Keeper, said: str) -> None:
    assert str(keeper) == said
