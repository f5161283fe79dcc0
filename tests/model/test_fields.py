from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.model.fields import Fields

if TYPE_CHECKING:
    from collections.abc import Callable

RIGHT: list[tuple[Callable[[Fields], object], object, object]] = [
    (lambda one: one.text("x"), "a", "a"),
    (lambda one: one.number("x"), 7, 7),
    (lambda one: one.flag("x"), False, False),
    (lambda one: one.choice("x", ("a", "b")), "b", "b"),
    (lambda one: one.path("x"), "/d/f", "/d/f"),
    (lambda one: one.texts("x"), ["a", "b"], ("a", "b")),
    (lambda one: one.paths("x"), ["/a"], ("/a",)),
    (lambda one: one.chains("x"), {"vda": ["/a", "nbd:x"]}, {"vda": ("/a", "nbd:x")}),
    (lambda one: one.text_by_key("x"), {"n": "a"}, {"n": "a"}),
    (lambda one: one.path_by_key("x"), {"n": "/a"}, {"n": "/a"}),
    (lambda one: one.number_by_key("x"), {"n": 0}, {"n": 0}),
    (lambda one: one.flag_by_key("x"), {"n": True}, {"n": True}),
    (lambda one: one.within("x").text("y"), {"y": "a"}, "a"),
    (lambda one: one.items("x"), {"y": 7}, {"y": 7}),
    (lambda one: one.list("x"), [7], [7]),
]
WRONG: list[tuple[Callable[[Fields], object], object, str]] = [
    (lambda one: one.text("x"), 7, "'x' holds 7, which is no text"),
    (lambda one: one.text("x"), "a\0", "no text"),
    (lambda one: one.number("x"), "7", "'x' holds '7', which is no number"),
    (lambda one: one.number("x"), -1, "no number"),
    (lambda one: one.number("x"), 1.5, "no number"),
    (lambda one: one.number("x"), True, "no number"),
    (lambda one: one.flag("x"), 1, "'x' is 1, not true or false"),
    (lambda one: one.choice("x", ("a", "b")), "c", "'x' is 'c', none of 'a', 'b'"),
    (lambda one: one.path("x"), "d/f", "not an absolute path"),
    (lambda one: one.texts("x"), "ab", "'x' is no list"),
    (lambda one: one.paths("x"), ["a"], "not an absolute path"),
    (lambda one: one.chains("x"), {"vda": "ab"}, "'x' is no list"),
    (lambda one: one.text_by_key("x"), [], "'x' is no object"),
    (lambda one: one.path_by_key("x"), {"n": "a"}, "not an absolute path"),
    (lambda one: one.number_by_key("x"), {"n": None}, "no number"),
    (lambda one: one.flag_by_key("x"), {"n": 0}, "not true or false"),
    (lambda one: one.within("x"), 7, "'x' is no object"),
    (lambda one: one.items("x"), None, "'x' is no object"),
]


@pytest.mark.parametrize(("read", "value", "expected"), RIGHT)
def test_fields_give_what_they_hold(
    read: Callable[[Fields], object], value: object, expected: object
) -> None:
    assert read(Fields({"x": value})) == expected


@pytest.mark.parametrize(("read", "value", "reason"), WRONG)
def test_fields_refuse_another_shape_by_name(
    read: Callable[[Fields], object], value: object, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read(Fields({"x": value}))


@pytest.mark.parametrize(("read", "value", "expected"), RIGHT)
def test_fields_refuse_to_be_missing(
    read: Callable[[Fields], object], value: object, expected: object
) -> None:
    with pytest.raises(ValueError, match="x"):
        read(Fields({}))


def test_fields_are_those_of_an_object() -> None:
    with pytest.raises(ValueError, match="the record is no object"):
        Fields([], what="the record")
    assert [Fields({"x": None, "y": 0}).has(key) for key in "xyz"] == [False, True, False]
    assert Fields({"x": 1.5}).value("x") == 1.5
