from __future__ import annotations

import copy
import json
import pickle
from typing import TYPE_CHECKING, cast

import pytest

from qmpsnap.errors import QmpsnapError, Unsupported
from qmpsnap.model.option_hints import Hint, Named, names, reword

if TYPE_CHECKING:
    from collections.abc import Callable

USUAL = "if {0} is raw: --format 'a b'=raw; or give launcher="


def an_error() -> QmpsnapError:
    hint = Hint("if {0} is raw: ", Named("format", ("'a b'", "raw", "a b")), "; or ", Named("launcher"))
    return Unsupported("no", feature="f", hint=hint)


def test_hint_of_an_error_is_plain_text_in_the_usual_words() -> None:
    error = an_error()
    assert (error.hint, type(error.hint)) == (USUAL, str)
    assert json.loads(json.dumps(error.to_json())) == {
        "type": "Unsupported",
        "message": "no",
        "changed": "no",
        "hint": USUAL,
        "invalid": [],
        "left": [],
        "feature": "f",
    }


def test_hint_is_shown_in_the_words_of_each_caller() -> None:
    error = an_error()
    reword(error, {"format": '"{2}": (PATH, "{1}")'})
    assert (error.hint, type(error.hint)) == ('if {0} is raw: "a b": (PATH, "raw"); or give launcher=', str)
    reword(error, {"launcher": "return one", "memory": "none"})
    assert error.hint == 'if {0} is raw: "a b": (PATH, "raw"); or return one'
    error.hint = "give launcher="  # another one, which is text alone
    reword(error, {"launcher": "return one"})
    assert error.hint == "give launcher="


def test_hint_tells_which_options_it_names() -> None:
    assert [names(an_error(), option) for option in ("format", "launcher", "memory")] == [True, True, False]
    assert not names(Unsupported("no", feature="f", hint="allow it with --plain"), "plain")


def pickled(error: QmpsnapError) -> QmpsnapError:
    return cast("QmpsnapError", pickle.loads(pickle.dumps(error)))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_hint_of_an_error_that_is_copied_still_knows_its_options(
    copied: Callable[[QmpsnapError], QmpsnapError],
) -> None:
    error = an_error()
    reword(error, {"launcher": "return one"})
    error = copied(error)
    reword(error, {"format": "{1}"})
    assert error.hint == "if {0} is raw: raw; or return one"
