from __future__ import annotations

import pathlib

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.model.arguments import number, path_text, texts


def test_texts_takes_any_sequence_and_no_single_name() -> None:
    assert texts("disks", ["vda", "vdb"]) == ("vda", "vdb")
    assert texts("disks", iter(["vda"])) == ("vda",)
    with pytest.raises(BadArgument, match="disks is 'vda': give several names") as caught:
        texts("disks", "vda")
    assert caught.value.hint == "disks=['vda']"


def test_path_text_takes_a_str_and_what_gives_one() -> None:
    assert path_text("file", "/x") == path_text("file", pathlib.PurePosixPath("/x")) == "/x"
    assert path_text("file", "/\udcff") == "/\udcff"  # a byte that is no text, as the system hands it on


def test_number_takes_zero_only_where_it_means_something() -> None:
    assert (number("limit", 0.5), number("limit", float("inf"))) == (0.5, float("inf"))
    assert number("interval", 0, zero=True) == 0
    with pytest.raises(BadArgument, match="limit is 0: give seconds, more than 0"):
        number("limit", 0)
