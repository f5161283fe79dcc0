from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

import pytest

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.memory import LayerState, MemoryFact
from qmpsnap.run.cleanup import identity
from qmpsnap.run.memory_files import is_closed, look, open_memory, reserve, seal_memory, seal_store

if TYPE_CHECKING:
    from pathlib import Path

    from qmpsnap.run.cleanup import Created
    from qmpsnap.run.memory_files import Sealed

KEPT = Fingerprint("pc", 7, ("cpu",), {}, {})
STREAM = b"a stream of VM state" * 100


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    file = tmp_path / "m.partial"
    file.write_bytes(STREAM)
    file.chmod(0o600)
    return file


def seal(
    partial: Path, *layers: tuple[str, str], made: Created | None = None, name: str = "c1", trims: bool = True
) -> Sealed:
    file = str(partial).removesuffix(".partial")
    return seal_memory(
        str(partial),
        file,
        id="id",
        name=name,
        running=True,
        fingerprint=KEPT,
        layers=layers,
        trims=trims,
        made=made,
    )


def fact(path: Path | str) -> MemoryFact:
    return look([str(path)])[str(path)]


def test_seal_memory_gives_a_whole_file_its_note_and_its_name(partial: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(b"data")
    status = layer.stat()
    assert seal(partial, ("vda", str(layer))).size_bytes == len(STREAM)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layer", "m"]
    found = fact(tmp_path / "m")
    assert (found.size, found.problem) == ((tmp_path / "m").stat().st_size, "")
    assert found.note is not None
    assert (found.note.stream_bytes, found.note.name, found.note.fingerprint) == (len(STREAM), "c1", KEPT)
    assert found.note.layers == (
        LayerState("vda", str(layer), status.st_ino, status.st_size, status.st_mtime_ns),
    )
    assert (tmp_path / "m").read_bytes().startswith(STREAM)


def test_seal_memory_never_replaces_a_file(partial: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_text("precious")
    with pytest.raises(FileExistsError):
        seal(partial)
    assert (tmp_path / "m").read_text() == "precious"
    assert partial.exists()


def test_seal_memory_of_save_writes_nothing_when_a_layer_is_gone(partial: Path) -> None:
    with pytest.raises(FileNotFoundError):
        seal(partial, ("vda", "/no/such/layer"), name="")
    assert partial.read_bytes() == STREAM


def test_seal_memory_of_a_checkpoint_notes_the_layers_that_it_finds(partial: Path, tmp_path: Path) -> None:
    # Its overlays are on: it is whole all the same.
    seal(partial, ("vda", "/no/such/layer"), ("vda", str(partial)))
    found = fact(tmp_path / "m")
    assert found.note is not None
    assert [one.file for one in found.note.layers] == [str(partial)]


def test_seal_memory_gives_back_what_was_reserved(partial: Path, tmp_path: Path) -> None:
    reserve(str(partial), 8 << 20)
    reserved = partial.stat().st_blocks
    seal(partial)
    assert (tmp_path / "m").stat().st_blocks < max(reserved, 1 << 12)


def test_seal_memory_may_leave_reserved_what_is_removed_soon(partial: Path, tmp_path: Path) -> None:
    reserve(str(partial), 8 << 20)
    reserved = partial.stat().st_blocks
    seal(partial, trims=False)
    assert (tmp_path / "m").stat().st_blocks >= reserved
    assert fact(tmp_path / "m").note is not None


def test_seal_store_gives_a_store_its_name_and_never_replaces_a_file(partial: Path, tmp_path: Path) -> None:
    names = str(partial), str(tmp_path / "m")
    assert seal_store(*names).size_bytes == len(STREAM)
    assert (tmp_path / "m").read_bytes() == STREAM
    partial.write_bytes(b"another")
    partial.chmod(0o600)
    with pytest.raises(FileExistsError):
        seal_store(*names)
    assert (tmp_path / "m").read_bytes() == STREAM


@pytest.mark.parametrize("length", [0, 1, len(STREAM), -1, -16, -17])
def test_look_knows_no_note_in_a_file_that_was_cut(partial: Path, tmp_path: Path, length: int) -> None:
    seal(partial)
    whole = tmp_path / "m"
    size = whole.stat().st_size
    os.truncate(whole, length if length >= 0 else size + length)
    found = fact(whole)
    assert (found.note, found.exists) == (None, True)
    assert "it was cut, or somebody else wrote it" in found.problem


def test_look_knows_no_note_where_something_is_missing_before_it(partial: Path, tmp_path: Path) -> None:
    seal(partial)
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[1:])
    assert fact(tmp_path / "m").problem == "its length is not what its note says"


def test_look_says_why_it_cannot_look(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    paths = [str(tmp_path / name) for name in ("none", "pipe", "link", "a\0b")] + [str(tmp_path)]
    found = look(paths)
    assert [found[path].exists for path in paths] == [False, True, True, True, True]
    assert found[paths[0]].problem == "there is no such file"
    assert found[paths[1]].problem == "it is a FIFO"
    assert found[paths[4]].problem == "it is a directory"
    assert found[paths[2]].problem != ""
    assert "null" in found[paths[3]].problem


def test_open_memory_locks_a_file_to_be_written_until_the_last_descriptor_is_closed(partial: Path) -> None:
    assert is_closed(str(partial))
    ours = open_memory(str(partial), write=True)
    qemus = os.dup(ours)
    os.close(ours)
    assert not is_closed(str(partial))
    with pytest.raises(BlockingIOError):
        open_memory(str(partial), write=True)
    os.close(qemus)
    assert is_closed(str(partial))


@pytest.mark.parametrize(("write", "mode"), [(True, os.O_WRONLY), (False, os.O_RDONLY)])
def test_open_memory_opens_for_one_way_alone_and_blocking(partial: Path, write: bool, mode: int) -> None:
    descriptor = open_memory(str(partial), write=write)
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    os.close(descriptor)
    assert (flags & os.O_ACCMODE, flags & os.O_NONBLOCK) == (mode, 0)


def test_open_memory_to_be_read_leaves_no_lock(partial: Path) -> None:
    descriptor = open_memory(str(partial), write=False)
    assert is_closed(str(partial))
    os.close(descriptor)


def test_open_memory_opens_a_fifo_where_that_is_wanted(partial: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    descriptor = open_memory(str(tmp_path / "fifo"), write=False, fifo=True)
    assert os.get_blocking(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="it is a regular file"):
        open_memory(str(partial), write=False, fifo=True)


def test_open_memory_opens_nothing_but_a_regular_file(partial: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(partial)
    for path in (tmp_path / "link", tmp_path / "none", tmp_path):
        with pytest.raises(OSError):  # noqa: PT011  # each has its own reason
            open_memory(str(path), write=False)


def test_reserve_takes_room_and_leaves_the_length(partial: Path) -> None:
    reserve(str(partial), 1 << 20)
    assert partial.stat().st_size == len(STREAM)
    assert partial.stat().st_blocks * 512 >= 1 << 20


def test_reserve_says_so_when_there_is_no_room(partial: Path) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011  # the number is what counts
        reserve(str(partial), 1 << 62)  # more than any file can have, so that nothing is taken
    assert caught.value.errno in {errno.ENOSPC, errno.EFBIG}
    assert partial.read_bytes() == STREAM


def test_nothing_is_written_to_a_file_that_took_the_name_of_the_one_that_was_made(
    partial: Path, tmp_path: Path
) -> None:
    made = identity(str(partial))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    victim.chmod(0o600)
    partial.unlink()
    partial.hardlink_to(victim)
    for known in (made, None):  # None: it was made by an earlier run
        for write in (
            lambda: open_memory(str(partial), write=True, made=known),  # noqa: B023 - called at once
            lambda: reserve(str(partial), 1, known),  # noqa: B023 - as above
            lambda: seal(partial, made=known),  # noqa: B023 - as above
            lambda: seal_store(str(partial), str(tmp_path / "m"), made=known),  # noqa: B023 - as above
        ):
            with pytest.raises(OSError, match=r"another file|not a file of ours"):
                write()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_open_memory_writes_to_no_file_that_others_may_read(partial: Path, mode: int) -> None:
    partial.chmod(mode)
    with pytest.raises(OSError, match="not a file of ours"):
        open_memory(str(partial), write=True)


def test_look_names_the_states_inside_a_store_unless_its_table_was_cut(tmp_path: Path) -> None:
    entries = b""
    for number, name in ((b"1", b"qmpsnap-00000001"), (b"12", b"w")):
        fixed = struct.pack(">QIHHIIQII", 0, 0, len(number), len(name), 0, 0, 0, 0, 16)
        entry = fixed + struct.pack(">QQ", 0, int(number) << 20) + number + name
        entries += entry + bytes(-len(entry) % 8)
    store = tmp_path / "store.qcow2"
    head = b"QFI\xfb\0\0\0\3" + bytes(52)
    store.write_bytes((head + struct.pack(">IQ", 2, 4096)).ljust(4096, b"\0") + entries)
    assert look([str(store)])[str(store)].tags == ("qmpsnap-00000001", "w")
    assert look([str(store)])[str(store)].sizes == {"qmpsnap-00000001": 1 << 20, "w": 12 << 20}
    os.truncate(store, 4096 + 90)
    assert look([str(store)])[str(store)].tags == ()
    assert look([str(store)])[str(store)].sizes == {}
    store.write_bytes(head + struct.pack(">IQ", 2, (1 << 64) - 1))
    assert look([str(store)])[str(store)].tags == ()
    store.write_bytes(b"QFI\xfb")
    assert look([str(store)])[str(store)].tags == ()
