from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qmpsnap.errors import Unsupported
from qmpsnap.run.tools import tool

if TYPE_CHECKING:
    from pathlib import Path


def test_tool_is_found_on_path_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="qemu-nbd is not installed, or not on PATH"):
        tool("qemu-nbd")
    (tmp_path / "qemu-nbd").touch(mode=0o755)
    assert tool("qemu-nbd") == str(tmp_path / "qemu-nbd")
