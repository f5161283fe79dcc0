from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from qmpsnap.model.machine import Fingerprint
from qmpsnap.model.memory import MAX_NOTE_BYTES, TAIL_BYTES, LayerState, MemoryFact, MemoryNote, note_size
from tests.each import each

NOTE = MemoryNote(
    id="qmpsnap-checkpoint-keep-00000001",
    name="c1",
    stream_bytes=4096,
    running=True,
    fingerprint=Fingerprint("pc", 7, ("cpu",), {"vda": "virtio-blk-pci"}, {"vda": 64}),
    layers=(LayerState("vda", "/d/\udcff", 7, 8, 1_714_564_800_123_456_789),),
)
WHOLE = NOTE.to_bytes()


def read(text: bytes) -> MemoryNote:
    size = note_size(text[-TAIL_BYTES:])
    return MemoryNote.from_bytes(text[-TAIL_BYTES - size : -TAIL_BYTES])


def changed(**change: object) -> bytes:
    body = json.loads(WHOLE[:-TAIL_BYTES])
    return json.dumps(body | change).encode()


def test_note_is_read_from_the_end_of_its_file() -> None:
    assert read(b"a stream" + WHOLE) == NOTE
    assert read(replace(NOTE, name="", layers=()).to_bytes()) == replace(NOTE, name="", layers=())


def test_note_of_a_file_that_was_cut_is_none_at_any_length() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(ValueError, match="does not end in a note of ours"):
            note_size(WHOLE[:length][-TAIL_BYTES:])


@each(
    "tail",
    [b"", b"x" * TAIL_BYTES, bytes(TAIL_BYTES), bytes(8) + b"QMPSNAP\x02", b"x" + WHOLE[-TAIL_BYTES:]],
)
def test_note_of_somebody_else_is_none(tail: bytes) -> None:
    with pytest.raises(ValueError, match="does not end in a note of ours"):
        note_size(tail)


def test_note_that_is_too_long_is_none() -> None:
    tail = WHOLE[-8:]
    assert note_size(MAX_NOTE_BYTES.to_bytes(8, "big") + tail) == MAX_NOTE_BYTES
    with pytest.raises(ValueError, match="does not end in a note of ours"):
        note_size((MAX_NOTE_BYTES + 1).to_bytes(8, "big") + tail)


def test_note_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 2, only 1 is known"):
        MemoryNote.from_bytes(changed(version=2))


@each(
    "change",
    [
        {"id": 7},
        {"name": None},
        {"bytes": "4096"},
        {"bytes": float("inf")},
        {"bytes": -1},
        {"bytes": True},
        {"running": "no"},
        {"fingerprint": None},
        {"fingerprint": {}},
        {"layers": None},
        {"layers": [7]},
        {"layers": [["vda", "/d", 1, 2]]},
        {"layers": [["vda", "/d", 1, 2, 3.5]]},
        {"layers": [["vda", None, 1, 2, 3]]},
        {"layers": ["abcde"]},
    ],
)
def test_note_of_a_wrong_shape_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=" "):
        MemoryNote.from_bytes(changed(**change))


@each("key", list(json.loads(WHOLE[:-TAIL_BYTES])))
def test_note_that_lacks_a_field_is_refused(key: str) -> None:
    body = json.loads(WHOLE[:-TAIL_BYTES])
    del body[key]
    with pytest.raises(ValueError, match=key):
        MemoryNote.from_bytes(json.dumps(body).encode())


@each("text", [b"", b"7", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_note_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each has its own reason
        MemoryNote.from_bytes(text)


def test_memory_fact_of_a_file_that_is_not_there_says_so() -> None:
    assert not MemoryFact("/m", problem="there is no such file").exists
    assert MemoryFact("/m", size=0).exists


@each(
    ("fact", "recorded", "says"),
    [
        ({}, {}, ""),
        ({"inode": 7}, {"inode": 7, "user": 0}, ""),
        ({"links": 2}, {}, "it has 2 names, and may be any file of the host"),
        ({"links": 0}, {}, "it has 0 names, and may be any file of the host"),
        ({"mode": 0o620}, {}, "others may write to it (mode 620)"),
        ({"mode": 0o602}, {}, "others may write to it (mode 602)"),
        ({"mode": 0o644}, {}, ""),
        ({"ours": False, "user": 9}, {}, "it belongs to the user 9"),
        ({"ours": False, "user": 9}, {"user": 9}, ""),  # a store has the owner of the layers
        ({"ours": False, "user": 9}, {"user": 8}, "it belongs to the user 9"),
        ({"inode": 7}, {"inode": 8}, ""),  # nobody else can have put it there: from a backup, say
        (
            {"inode": 7, "exposed": True},
            {"inode": 8},
            "it is not the file that was made, and others may put files into its directory",
        ),
        ({"inode": 7, "exposed": True}, {}, ""),  # not written down in older records
    ],
)
def test_foreign_says_why_vm_state_may_be_somebody_elses(fact, recorded, says):
    assert MemoryFact("/m", size=1, **fact).foreign(**recorded) == says
