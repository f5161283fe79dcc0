from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.memory import MemoryNote
from qmpsnap.run.memory_files import remove_state_file

if TYPE_CHECKING:
    from pathlib import Path

ID = "qmpsnap-checkpoint-keep-0000000a"
NOTE = MemoryNote(ID, "c1", 6, True, Fingerprint("pc", 7, (), {}, {}), ())


def store(file: Path, tag: bytes) -> None:
    head = b"QFI\xfb" + struct.pack(">I", 3) + bytes(52) + struct.pack(">IQ", 1, 72)
    file.write_bytes(head + struct.pack(">QIHHIIQII", 0, 0, 1, len(tag), 0, 0, 0, 0, 0) + b"1" + tag)


def test_remove_state_removes_a_stream_with_its_own_note_alone(tmp_path: Path) -> None:
    file = tmp_path / "m"
    file.write_bytes(b"stream" + NOTE.to_bytes())
    assert not remove_state_file(str(file), "another", "")
    assert file.exists()
    assert remove_state_file(str(file), ID, "")
    assert not file.exists()
    assert not remove_state_file(str(file), ID, "")


def test_remove_state_removes_a_store_with_its_own_snapshot_alone(tmp_path: Path) -> None:
    file = tmp_path / "m.vmstate.qcow2"
    store(file, b"qmpsnap-0000000b")
    assert not remove_state_file(str(file), ID, "qmpsnap-0000000a")
    store(file, b"qmpsnap-0000000a")
    assert remove_state_file(str(file), ID, "qmpsnap-0000000a")
    assert not file.exists()


def test_remove_state_removes_an_unfinished_file_of_its_own_name_alone(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "m.0000000a.partial", tmp_path / "m.0000000b.partial"
    ours.touch()
    theirs.touch()
    assert remove_state_file(str(ours), ID, "")
    assert not remove_state_file(str(theirs), ID, "")
    assert not remove_state_file(str(theirs), ID, "qmpsnap-0000000a")
    assert (ours.exists(), theirs.exists()) == (False, True)


def test_remove_state_follows_no_symlink(tmp_path: Path) -> None:
    file = tmp_path / "m.0000000a.partial"
    (tmp_path / "precious").write_text("precious")
    file.symlink_to(tmp_path / "precious")
    assert not remove_state_file(str(file), ID, "")
    assert file.is_symlink()
    assert file.read_text() == "precious"
