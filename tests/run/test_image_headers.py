"""Headers of image files, and of what is no image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from qmpsnap.run.image_headers import file_header
from tests.headers import qcow2_bytes

if TYPE_CHECKING:
    from pathlib import Path


def test_file_header_reads_a_regular_image_only(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(qcow2_bytes())
    (tmp_path / "raw").write_bytes(b"no header")
    os.mkfifo(tmp_path / "pipe")
    header = file_header(str(tmp_path / "image"))
    assert header is not None
    assert header.format == "qcow2"
    assert file_header(str(tmp_path / "raw")) is None
    assert file_header(str(tmp_path / "pipe")) is None


def test_file_header_refuses_an_image_that_is_cut(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(qcow2_bytes()[:80])
    with pytest.raises(ValueError, match="truncated at byte 80"):
        file_header(str(tmp_path / "image"))
