from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qmpsnap.model.layer_stamps import stamp_of
from qmpsnap.run import mounts
from qmpsnap.run.file_stamps import file_stamps
from qmpsnap.run.image_headers import file_header
from tests.headers import qcow2_bytes

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_regular_files_without_bitmaps_have_stamps(tmp_path: Path) -> None:
    image, raw = tmp_path / "image", tmp_path / "raw"
    image.write_bytes(qcow2_bytes(backing="/b"))
    raw.write_bytes(b"no header")
    expected = {}
    for file in (image, raw):
        os.utime(file, ns=(0, 77))
        header = file_header(str(file))
        expected[str(file)] = stamp_of(header, modified_ns=77, inode=file.stat().st_ino)
    (tmp_path / "cut").write_bytes(qcow2_bytes()[:80])
    (tmp_path / "bitmaps").write_bytes(qcow2_bytes(bitmaps=1))
    os.mkfifo(tmp_path / "pipe")
    others = [str(tmp_path / name) for name in ("cut", "bitmaps", "pipe", "missing")]
    assert file_stamps([*others, *expected]) == expected
    assert file_stamps(()) == {}


def test_files_on_another_hosts_file_system_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "raw"
    file.write_bytes(b"no header")
    device = file.stat().st_dev
    line = f"41 27 {os.major(device)}:{os.minor(device)} / /mnt rw - {{}} server:/x rw\n"
    own = f"/proc/{os.getpid()}/mountinfo"
    for kind, found in (("nfs4", []), ("ext4", [str(file)])):
        monkeypatch.setattr(mounts, "kernel_text", {own: line.format(kind)}.__getitem__)
        assert [*file_stamps([str(file)])] == found
