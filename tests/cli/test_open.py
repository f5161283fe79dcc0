from __future__ import annotations

import json

from qmpsnap.cli.open import _show
from qmpsnap.run.view import View

VIEW = View("c1", "vda", "nbd+unix:///vda?socket=/d/nbd", "/d/nbd", "vda", 20 << 30, ("/base",), "/m/vda.raw")


def test_views_are_shown_with_their_address_and_their_file(capsys):
    _show([VIEW], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "vda at c1: nbd+unix:///vda?socket=/d/nbd (20 GiB)",
        "  file: /m/vda.raw",
        "open until Ctrl-C",
    ]


def test_views_are_one_json_object(capsys):
    _show([VIEW], as_json=True)
    (view,) = json.loads(capsys.readouterr().out)["views"]
    assert view == {**VIEW.to_json(), "layers": ["/base"]}
