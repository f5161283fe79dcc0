"""Sphinx's configuration; scripts/docs builds with it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "qmpsnap"
author = "the authors of qmpsnap"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_the_code", "pictures"]
exclude_patterns = ["_build", "_ext", "_static"]
html_theme = "furo"
html_title = "qmpsnap"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autoclass_content = "class"
napoleon_use_rtype = False
# Names of the standard library and of other packages have no page here.
nitpick_ignore_regex = [
    ("py:.*", r"(?!qmpsnap).*"),
    # Internal, like steps.
    ("py:class", r"qmpsnap\.(one_machine|plan|run|model\.step|model\.picture\.boxes)\..*"),
]
