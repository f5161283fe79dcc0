from __future__ import annotations

from typing import get_args

from qmpsnap.model.picture.picture import PictureFormat
from qmpsnap.testing.drawing import graph
from tests.each import each


@each("form", get_args(PictureFormat))
def test_each_format_shows_both_ends_of_a_long_chain(form: PictureFormat) -> None:
    text = graph(vda=" <- ".join(f"s{number}" for number in range(200)) + "*").picture().render(form)
    assert "187 layers not shown" in text
    assert ("s199.qcow2" in text, "s100.qcow2" in text, "s0.qcow2" in text) == (True, False, True)
    assert text.endswith("\n")


def test_a_notebook_shows_a_picture() -> None:
    picture = graph(vda="base <- s1*").picture()
    assert picture._repr_svg_() == picture.render("svg")
