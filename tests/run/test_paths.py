from __future__ import annotations

from pathlib import Path

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.run.paths import absolute, absolute_each


def test_absolute_is_of_the_callers_directory() -> None:
    assert absolute("file", "x/../y") == f"{Path.cwd()}/x/../y"
    assert absolute("file", Path("/x")) == "/x"


def test_absolute_each_takes_no_single_path() -> None:
    assert absolute_each("look_in", [Path("/x"), "/y"]) == ("/x", "/y")
    with pytest.raises(BadArgument, match="give several paths"):
        absolute_each("look_in", "/x")
