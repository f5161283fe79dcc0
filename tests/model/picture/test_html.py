from __future__ import annotations

import base64
import re
from xml.etree import ElementTree as ET

from qmpsnap.model.picture.html import image, table, text
from qmpsnap.testing.drawing import graph

HOSTILE = '"><script>alert(1)</script>\x1b[2J'


def test_an_image_of_a_page_has_the_picture_and_its_title() -> None:
    picture = graph(vda="base <- s1*").picture()
    element = ET.fromstring(image(picture).replace(">", "/>"))
    assert element.get("alt") == "vda: 2 layers, the active one is s1.qcow2"
    kind, _, data = (element.get("src") or "").partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).decode() == picture.render("svg")


def test_text_and_tables_are_escaped() -> None:
    for page in (text(f"{HOSTILE}\n{HOSTILE}"), table((HOSTILE,), [(HOSTILE,)])):
        assert "\x1b" not in page
        assert set(re.findall(r"<(\w+)", page)) <= {"pre", "table", "thead", "tbody", "tr", "th", "td"}
        assert page.count("&quot;&gt;&lt;script&gt;") == 2
