from __future__ import annotations

import struct

import pytest

from qmpsnap.testing.seeder import seeder

SEED = struct.pack("<ii", 128, 16) + b"0123456789abcdef"


@pytest.mark.parametrize(
    ("now_ns", "data"),
    [
        (None, b"/dev/urandom\0" + SEED),
        (
            1_700_000_000_250_000_000,
            b"/dev/urandom\0" + struct.pack("<qq", 1_700_000_000, 250_000_000) + SEED,
        ),
    ],
)
def test_seeder_is_a_program_that_ends_with_its_data(now_ns, data):
    program = seeder(b"0123456789abcdef", now_ns=now_ns)
    kind, machine, entry = struct.unpack_from("<HH4xQ", program, 16)
    offset, address, size = struct.unpack_from("<QQ8xQ", program, 64 + 8)
    assert (program[:4], kind, machine, offset, size) == (b"\x7fELF", 2, 62, 0, len(program))
    assert program[entry - address] == 0xB8  # mov eax, ...
    assert program.endswith(b"\x0f\x05" + data)  # exit
