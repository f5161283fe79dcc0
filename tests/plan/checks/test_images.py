"""The rules for images of a machine that is off, without a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from qmpsnap.errors import Refused, StillNeeded, UnsafeImage, Unsupported
from qmpsnap.model.header import Header, parse_header
from qmpsnap.model.image_chain import ImageChain, ImageLayer
from qmpsnap.model.wrong_start import WrongStart
from qmpsnap.plan.checks.images import (
    backing_file,
    chosen_format,
    data_file,
    recorded_format,
    refuse_below,
    refuse_header,
    refuse_outside,
    refuse_shared,
)
from tests.each import each
from tests.headers import qcow2_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

HEADER = Header("qcow2", 1 << 20, l1_entries=1)
LAYER = ImageLayer("/d/top.qcow2", "qcow2", 1 << 20, 1, 1, HEADER)


def with_backing(name: str | None, form: str | None = "qcow2") -> ImageLayer:
    return replace(LAYER, header=replace(HEADER, backing=name, backing_format=form))


@each(
    ("recorded", "path"),
    [
        (None, None),
        ("base.qcow2", "/d/base.qcow2"),
        ("../base.qcow2", "/d/../base.qcow2"),
        ("/b/base.qcow2", "/b/base.qcow2"),
        ("file:/b/base.qcow2", "/b/base.qcow2"),
        ("./nbd:base", "/d/./nbd:base"),  # a colon behind a slash is part of a name
    ],
)
def test_backing_file_is_the_file_that_a_plain_name_leads_to(recorded: str | None, path: str | None) -> None:
    assert backing_file(with_backing(recorded)) == path


@each("recorded", ["json:{}", "nbd:base", "file:base", "a:b", "fat:rw:/d", "host_device:/dev/sda", "x\0y"])
def test_backing_file_refuses_what_is_not_a_plain_name(recorded: str) -> None:
    with pytest.raises(UnsafeImage, match="not a plain file name") as caught:
        backing_file(with_backing(recorded))
    assert caught.value.file == LAYER.file


@given(st.text(max_size=40))
def test_backing_file_gives_an_absolute_path_or_refuses(recorded: str) -> None:
    try:
        path = backing_file(with_backing(recorded))
    except UnsafeImage:
        return
    assert path is not None
    assert path.startswith("/")
    assert recorded[:5] != "json:"


@each(("recorded", "path"), [("/d/x.raw", "/d/x.raw"), ("file:/d/x.raw", "/d/x.raw"), (None, None)])
def test_data_file_has_an_absolute_name(recorded: str | None, path: str | None) -> None:
    assert data_file("/d/top.qcow2", replace(HEADER, data_file=recorded)) == path


@each("recorded", ["x.raw", "", "json:{}", "nbd:/d/x", "file:x.raw", "../x.raw"])
def test_data_file_refuses_any_other_name(recorded: str) -> None:
    with pytest.raises(UnsafeImage):
        data_file("/d/top.qcow2", replace(HEADER, data_file=recorded))


@each(("form", "found"), [("raw", "raw"), ("qcow2", "qcow2")])
def test_recorded_format_is_that_of_the_overlay(form: str, found: str) -> None:
    assert recorded_format(with_backing("b", form), "/d/b") == found


@each(
    ("form", "error"),
    [(None, UnsafeImage), ("vmdk", Unsupported), ("file", Unsupported), ("luks", Unsupported)],
)
def test_recorded_format_is_refused_when_there_is_none_or_another(
    form: str | None, error: type[Refused]
) -> None:
    with pytest.raises(error) as caught:
        recorded_format(with_backing("b", form), "/d/b")
    assert caught.value.hint


@each(
    ("file", "header", "wanted", "chosen"),
    [
        ("/d/x.qcow2", HEADER, None, "qcow2"),
        ("/d/x.img", HEADER, "qcow2", "qcow2"),
        ("/d/x.img", HEADER, "raw", "raw"),
        ("/d/x.qcow2", None, "raw", "raw"),
        ("/d/x.img", HEADER, None, None),
        ("/d/x.img", None, None, None),
        ("/d/qcow2", HEADER, None, None),
        ("/d/x.qcow2.bak", HEADER, None, None),
        ("/d/x.qcow2", None, None, None),
        ("/d/x.qcow2", None, "qcow2", None),
    ],
)
def test_chosen_format_is_the_callers_or_that_of_the_name_if_the_header_agrees(
    file: str, header: Header | None, wanted: str | None, chosen: str | None
) -> None:
    if chosen is not None:
        assert chosen_format("vda", file, header, wanted) == chosen
        return
    with pytest.raises(UnsafeImage) as caught:
        chosen_format("vda", file, header, wanted)
    assert "--format vda=raw" in caught.value.hint


@each(
    ("real", "allowed"),
    [
        ("/d/base", ()),
        ("/pool/base", ("/pool",)),
        ("/pool/a/b/base", ("/pool",)),
        ("/any/base", ("/",)),
    ],
)
def test_a_file_may_be_beside_the_image_or_in_an_allowed_directory(
    real: str, allowed: tuple[str, ...]
) -> None:
    refuse_outside(real, file=real, own="/d", allowed=allowed)


@each(
    ("real", "allowed"),
    [
        ("/d/sub/base", ()),
        ("/base", ()),
        ("/dd/base", ()),
        ("/pool2/base", ("/pool",)),
        ("/poo/base", ("/pool",)),
        ("/pool", ("/pool",)),
    ],
)
def test_a_file_anywhere_else_is_refused(real: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(UnsafeImage, match="outside the directory '/d'"):
        refuse_outside(real, file=real, own="/d", allowed=allowed, named_by="/d/top.qcow2")


@each("fields", [{}, {"virtual_size": 0}, {"virtual_size": 1 << 40}, {"cluster_bits": 9}, {"snapshots": 3}])
def test_headers_that_are_usual_are_taken(fields: Mapping[str, int]) -> None:
    header = parse_header(qcow2_bytes(**fields).ljust(4096, b"\0"))  # type: ignore[arg-type]  # all are ints
    assert header is not None
    refuse_header("/d/x", header)


@each(
    "changes",
    [
        {"l1_entries": (32 << 20) // 8 + 1},
        {"virtual_size": (512 << 20) + 1},
        {"virtual_size": (256 << 20) + 1, "incompatible": 16},  # entries of extended L2 tables take 16 bytes
        {"virtual_size": (32 << 10) + 1, "cluster_bits": 9},
        {"snapshot_count": 65537},
    ],
)
def test_headers_with_absurd_numbers_are_refused(changes: Mapping[str, int]) -> None:
    refuse_header("/d/x", replace(HEADER, **{**changes, "virtual_size": changes.get("virtual_size", 1) - 1}
                                  if "virtual_size" in changes else {}))  # fmt: skip
    with pytest.raises(UnsafeImage, match="it claims"):
        refuse_header("/d/x", replace(HEADER, **changes))


def test_an_unknown_feature_is_refused_and_a_known_one_is_not() -> None:
    for bit in range(5):
        refuse_header("/d/x", replace(HEADER, incompatible=1 << bit))
    for bit in (5, 63):
        with pytest.raises(Unsupported, match=f"{1 << bit:#x}"):
            refuse_header("/d/x", replace(HEADER, incompatible=1 << bit))


def test_disks_may_share_lower_layers_and_nothing_else() -> None:
    base = replace(LAYER, file="/d/base", inode=9)
    one, two = (replace(LAYER, file=f"/d/{number}", inode=number) for number in (1, 2))
    refuse_shared((ImageChain("a", (one, base)), ImageChain("b", (two, base))))
    with pytest.raises(UnsafeImage, match="the disks a and b are the same image"):
        refuse_shared((ImageChain("a", (one, base)), ImageChain("b", (replace(one, file="/d/x"), base))))
    with pytest.raises(StillNeeded) as caught:
        refuse_shared((ImageChain("a", (one, base)), ImageChain("b", (base,))))
    assert caught.value.by == ("/d/1",)
    data = {"data_file": "/d/data", "data_id": (1, 7)}
    refuse_shared(
        (ImageChain("a", (one, replace(base, **data))), ImageChain("b", (two, replace(base, **data))))
    )
    with pytest.raises(UnsafeImage, match="have the same data file"):
        refuse_shared((ImageChain("a", (replace(one, **data),)), ImageChain("b", (replace(two, **data),))))


def test_a_layer_on_which_others_stand_is_only_branched_from() -> None:
    found = (WrongStart("vda", "/d/base", ("/d/a", "/d/b")),)
    for kind in ("stream", "mirror", "snapshot-internal", "revert", "delete"):
        refuse_below(kind, ("vdb",), found)
        with pytest.raises(StillNeeded) as caught:
            refuse_below(kind, ("vda", "vdb"), found)
        assert caught.value.by == ("/d/a", "/d/b")
        assert "-i vda=/d/a or -i vda=/d/b" in caught.value.hint
    for kind in ("snapshot", "commit"):
        refuse_below(kind, ("vda",), found)
