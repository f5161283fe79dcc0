"""Sizes as people read them."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def size(number: int | None) -> str:
    """Bytes in units of 1024, three digits: "1.5 GiB"; "?" for None or a negative number."""
    if number is None or number < 0:
        return "?"
    if number < 1024:
        return f"{number} B"
    value, unit = float(number), ""
    for unit in _UNITS:  # noqa: B007 - the last one is used
        value /= 1024
        if value < 999.5:
            break
    return f"{value:.3g} {unit}"
