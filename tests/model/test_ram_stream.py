"""Streams as QEMU writes them, put together by hand, against what has to be left of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmpsnap.model.ram_stream import RamStream
from tests.each import each

PAGE, COUNT = 4096, 8
SIZE = PAGE * COUNT
A, B, C = (bytes([value]) * PAGE for value in b"abc")
MAGIC = b"QEVM\0\0\0\3"
CONFIGURATION = b"\7\0\0\0\x0apc-q35-7.2"
FOOTER, PART, END = b"\x7e\0\0\0\2", b"\2\0\0\0\2", b"\3\0\0\0\2"
START = b"\1\0\0\0\2\3ram\0\0\0\0\0\0\0\4"
EOS = struct.pack(">Q", 0x10)
DEVICES = b"\4\0\0\0\0\5timer" + b"\xff" * 40 + b"\x7e\0\0\0\0\0"


def listed(*blocks: tuple[str, int]) -> bytes:
    total = struct.pack(">Q", sum(size for _, size in blocks) | 4)
    return total + b"".join(named(name) + struct.pack(">Q", size) for name, size in blocks) + EOS


def named(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def page(number: int, content: bytes, block: str = "") -> bytes:
    """A page's record; without a block it is of the same as the last."""
    return (
        struct.pack(">Q", number * PAGE | (0x08 if block else 0x28))
        + (named(block) if block else b"")
        + content
    )


def filled(number: int, value: int = 0, block: str = "") -> bytes:
    head = struct.pack(">Q", number * PAGE | (0x02 if block else 0x22))
    return head + (named(block) if block else b"") + bytes([value])


BEGIN = MAGIC + CONFIGURATION + START + listed(("pc.ram", SIZE), ("vga.vram", SIZE)) + FOOTER


def split(stream: bytes, step: int = 1 << 20) -> tuple[bytes, bytes]:
    """Split a stream that comes in parts of that length; return the memory and the rest."""
    ram, memory, rest, left = RamStream("pc.ram", SIZE), bytearray(SIZE), b"", b""
    for at in range(0, len(stream), step):
        left += stream[at : at + step]
        done = ram.split(memoryview(left))
        for offset, views in done.pages:
            data = b"".join(views)
            memory[offset : offset + len(data)] = data
        rest += b"".join(done.rest)
        left = left[done.used_bytes :]
    assert not left
    return bytes(memory), rest


@each(
    "step",
    [1 << 20, 4100, 1],
)
def test_stream_is_split_into_the_pages_of_its_memory_and_the_rest(step: int) -> None:
    """A page that comes late, one in a second section, and pages of another block between them."""
    vga = filled(0, block="vga.vram") + page(1, C) + filled(2)
    first = page(0, A, "pc.ram") + page(1, B) + filled(2) + filled(3) + page(7, C) + filled(4) + vga
    last = page(5, B, "pc.ram") + filled(6)
    sections = PART + first + EOS + FOOTER + END + last + EOS + FOOTER
    memory, rest = split(BEGIN + sections + DEVICES, step)
    assert memory == A + B + bytes(3 * PAGE) + B + bytes(PAGE) + C
    assert rest == BEGIN + PART + vga + EOS + FOOTER + END + EOS + FOOTER + DEVICES


def test_pages_that_are_zero_are_not_written() -> None:
    ram = RamStream("pc.ram", SIZE)
    records = filled(0, block="pc.ram") + filled(1) + page(2, A) + filled(3) + page(4, bytes(PAGE), "pc.ram")
    done = ram.split(memoryview(BEGIN + PART + records + EOS + FOOTER + DEVICES))
    assert [(offset // PAGE, b"".join(views)) for offset, views in done.pages] == [(2, A)]


def test_pages_that_follow_each_other_are_written_together() -> None:
    ram = RamStream("pc.ram", SIZE)
    records = (
        filled(0, block="pc.ram") + page(1, A) + page(2, B) + page(3, C) + page(5, A) + filled(6) + page(7, B)
    )
    done = ram.split(memoryview(BEGIN + PART + records + EOS + FOOTER + DEVICES))
    groups = [(offset // PAGE, b"".join(views)) for offset, views in done.pages]
    assert groups == [(1, A + B + C), (5, A), (7, B)]


@each(
    ("records", "expected"),
    [
        # zeros
        (filled(0) + filled(1), bytes(2 * PAGE)),
        # other bytes
        (page(0, C) + filled(1, 0xEE), C + b"\xee" * PAGE),
        # zeros, with the block's name
        (filled(0, block="pc.ram") + page(1, C), bytes(PAGE) + C),
    ],
)
def test_page_that_is_sent_again_replaces_what_was_sent_before(records: bytes, expected: bytes) -> None:
    before = PART + page(0, A, "pc.ram") + page(1, B) + EOS + FOOTER
    memory, _ = split(BEGIN + before + PART + records + EOS + FOOTER + DEVICES)
    assert memory[: 2 * PAGE] == expected


def test_pages_of_a_memory_of_more_than_4_gib_are_where_they_belong() -> None:
    size, far = 8 << 30, (5 << 30) // PAGE + 0xABCDE
    begin = MAGIC + CONFIGURATION + START + listed(("pc.ram", size)) + FOOTER
    records = page(far, A, "pc.ram") + page(far + 1, B) + filled(far + 2) + filled(far + 1) + page(far + 3, C)
    done = RamStream("pc.ram", size).split(memoryview(begin + PART + records + EOS + FOOTER + DEVICES))
    assert [(offset // PAGE - far, b"".join(views)) for offset, views in done.pages] == [
        (0, A),
        (1, B),
        (1, bytes(PAGE)),
        (3, C),
    ]
    assert b"".join(done.rest) == begin + PART + EOS + FOOTER + DEVICES


@each(
    "between",
    [
        # zeros
        filled(2),
        # zeros, with the block's name
        filled(2, block="pc.ram"),
        # a page that is elsewhere, with the block's name
        page(6, C, "pc.ram"),
        # a page of another block
        page(2, C, "vga.vram"),
    ],
)
def test_page_stays_in_its_turn_that_follows_another_but_not_at_once(between: bytes) -> None:
    again = page(2, B, "pc.ram") if between.endswith(C) else page(2, B)
    records = page(2, A, "pc.ram") + page(1, A) + between + again
    done = RamStream("pc.ram", SIZE).split(memoryview(BEGIN + PART + records))
    assert (done.pages[-1][0], [bytes(view) for view in done.pages[-1][1]]) == (2 * PAGE, [B])
    memory, _ = split(BEGIN + PART + records + EOS + FOOTER + DEVICES)
    assert memory[PAGE : 3 * PAGE] == A + B


def test_page_filled_with_a_byte_is_written() -> None:
    memory, _ = split(BEGIN + PART + filled(0, 7, "pc.ram") + filled(1, 8) + EOS + FOOTER + DEVICES)
    assert memory[: 3 * PAGE] == b"\7" * PAGE + b"\x08" * PAGE + bytes(PAGE)


def test_commands_between_the_sections_are_left_in() -> None:
    command = b"\x08\0\x0b\0\3abc"
    stream = BEGIN + PART + page(0, A, "pc.ram") + EOS + FOOTER + command + DEVICES
    memory, rest = split(stream)
    assert memory[:PAGE] == A
    assert rest == BEGIN + PART + EOS + FOOTER + command + DEVICES


def test_stream_without_configuration_and_some_footers_is_split() -> None:
    begin = MAGIC + START + listed(("pc.ram", SIZE)) + FOOTER
    memory, rest = split(begin + PART + page(0, A, "pc.ram") + EOS + DEVICES)
    assert memory[:PAGE] == A
    assert rest == begin + PART + EOS + DEVICES


RECORDS = PART + page(0, A, "pc.ram") + EOS + FOOTER + DEVICES


@each(
    "stream",
    [
        # not a stream
        b"other" + RECORDS,
        # another version
        b"QEVM\0\0\0\4" + BEGIN[8:] + RECORDS,
        # a subsection of the configuration
        MAGIC + CONFIGURATION + b"\5\1x" + START + RECORDS,
        # another section first
        MAGIC + CONFIGURATION + b"\1\0\0\0\2\3abc\0\0\0\0\0\0\0\4" + RECORDS,
        # a second thing with records
        BEGIN + b"\1\0\0\0\3\5dirty" + RECORDS,
        # memory of another size
        MAGIC + START + listed(("pc.ram", 2 * SIZE)) + FOOTER + RECORDS,
        # memory of another name
        MAGIC + START + listed(("mem0", SIZE)) + FOOTER + RECORDS,
        # more about each block
        MAGIC + START + listed(("pc.ram", SIZE))[:-8] + bytes(8) + EOS + FOOTER + RECORDS,
        # no list
        MAGIC + START + EOS + RECORDS,
        # a list without an end
        MAGIC + START + listed(*[("block", 0)] * 6000, ("pc.ram", 1))[:-23] + RECORDS * 20,
    ],
)
def test_stream_that_begins_in_another_way_is_left_as_it_is(stream: bytes) -> None:
    assert split(stream) == (bytes(SIZE), stream)


@each(
    ("records", "message"),
    [
        # a page beyond the memory
        (page(COUNT, A), "a page at 0x8000, beyond the memory"),
        # zeros beyond the memory
        (filled(1) + filled(COUNT), "a page at 0x8000, beyond the memory"),
        # a compressed page
        (struct.pack(">Q", PAGE | 0x120), "a record with the flags 0x120"),
        # a flag among zeros
        (filled(1) + struct.pack(">Q", PAGE | 0x122) + b"\0", "the flags 0x122"),
        # another section
        (EOS + FOOTER + b"\2\0\0\0\3", "not of the memory"),
        # a section of an unknown type
        (EOS + FOOTER + b"\x06", "the type 0x6 amid the memory"),
    ],
)
def test_what_is_not_known_amid_the_memory_is_refused(records: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split(BEGIN + PART + page(0, A, "pc.ram") + records + bytes(PAGE))


def test_stream_that_ends_within_a_record_is_used_up_to_there() -> None:
    stream = BEGIN + PART + page(0, A, "pc.ram") + page(1, B)
    done = RamStream("pc.ram", SIZE).split(memoryview(stream[:-1]))
    assert b"".join(done.rest) == BEGIN + PART
    assert done.used_bytes == len(stream) - len(page(1, B))


@given(
    st.lists(
        st.tuples(st.integers(0, COUNT - 1), st.sampled_from([None, 0, 1, 255]), st.booleans()), max_size=40
    ),
    st.integers(1, 9000),
)
def test_memory_is_what_a_qemu_would_load(records: list[tuple[int, int | None, bool]], step: int) -> None:
    """In any order, with the block's name or without, interrupted by another block, and in any parts."""
    stream, expected, rest = BEGIN + PART, bytearray(SIZE), BEGIN + PART
    block = ""
    for number, value, elsewhere in records:
        name = "vga.vram" if elsewhere else "pc.ram"
        given_name = name if name != block else ""
        block = name
        content = A if value is None else bytes([value]) * PAGE
        record = page(number, A, given_name) if value is None else filled(number, value, given_name)
        stream += record
        if elsewhere:
            rest += record
        else:
            expected[number * PAGE : (number + 1) * PAGE] = content
    tail = EOS + FOOTER + DEVICES
    assert split(stream + tail, step) == (bytes(expected), rest + tail)
