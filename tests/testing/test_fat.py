from __future__ import annotations

import struct

import pytest

from qmpsnap.errors import BadArgument
from qmpsnap.testing.fat import build_fat

SECTOR = 512


def next_short(image: bytes, at: int) -> bytes:
    """The short name to which a part of a long one belongs."""
    while image[at + 11] == 0x0F:
        at += 32
    return image[at : at + 11]


def checksum_of(short: bytes) -> int:
    total = 0
    for byte in short:
        total = (total >> 1 | (total & 1) << 7) + byte & 0xFF
    return total


def unpack(image: bytes) -> tuple[str, dict[str, bytes]]:
    """Read a FAT12 file system by the letter of its description: label, and name -> content."""
    bytes_per, per_cluster, reserved, fats, entries, sectors, _, fat_sectors = struct.unpack_from(
        "<HBHBHHBH", image, 11
    )
    assert (bytes_per, per_cluster, image[510:512], len(image)) == (SECTOR, 1, b"\x55\xaa", sectors * SECTOR)
    tables = [
        image[(reserved + number * fat_sectors) * SECTOR :][: fat_sectors * SECTOR] for number in range(fats)
    ]
    assert len(set(tables)) == 1
    root = (reserved + fats * fat_sectors) * SECTOR
    data = root + entries * 32

    def following(cluster: int) -> int:
        at = cluster * 3 // 2
        pair = int.from_bytes(tables[0][at : at + 2], "little")
        return pair >> 4 if cluster % 2 else pair & 0xFFF

    label, found, long = "", {}, ""
    for at in range(root, data, 32):
        entry = image[at : at + 32]
        if entry[0] == 0:
            break
        match entry[11]:
            case 0x08:
                label = entry[:11].decode().rstrip()
            case 0x0F:
                assert entry[13] == checksum_of(next_short(image, at))
                text = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le")
                long = text.partition("\0")[0].rstrip("\uffff") + long
            case _:
                cluster, size = struct.unpack_from("<HI", entry, 26)
                content = b""
                while 2 <= cluster < 0xFF8:
                    content += image[data + (cluster - 2) * SECTOR :][:SECTOR]
                    cluster = following(cluster)
                assert len(content) - size in range(SECTOR)
                found[long], long = content[:size], ""
    return label, found


@pytest.mark.parametrize(
    "files",
    [
        {"user-data": b"#cloud-config\n", "meta-data": b"", "network-config": b"x" * 512},
        {"a": b"1" * 511, "a name of 13 ch": b"2" * 1025, "n" * 255: bytes(range(256)) * 100},
        {"large": bytes(1_400_000)},
        {},
    ],
    ids=["seed", "long", "large", "none"],
)
def test_build_fat_holds_the_files(files):
    assert unpack(build_fat(files, label="cidata")) == ("CIDATA", files)


def test_build_fat_gives_the_same_bytes_for_the_same_files():
    assert build_fat({"a": b"b"}, label="X") == build_fat({"a": b"b"}, label="X")


@pytest.mark.parametrize(
    ("files", "label"),
    [
        ({"large": bytes(1_500_000)}, "X"),
        ({f"file-{number}": b"" for number in range(200)}, "X"),
        ({"a/b": b""}, "X"),
        ({"": b""}, "X"),
        ({"é": b""}, "X"),
        ({"a\n": b""}, "X"),
        ({}, ""),
        ({}, "twelve chars"),
    ],
)
def test_build_fat_refuses_what_it_cannot_hold(files, label):
    with pytest.raises(BadArgument):
        build_fat(files, label=label)
