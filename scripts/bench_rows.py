"""A row of the table: both sides' medians, their ratio, and the bound that it has to keep."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

__all__ = ["HEADER", "Row", "ms", "plain", "ratio"]

HEADER = f"{'what':<52} {'ours':>12} {'against':>12} {'ratio':>9} {'bound':>7}"


@dataclass
class Row:
    """One measurement.

    Attributes:
        what: What was measured.
        ours: Our side, as text.
        bare: The other side, as text.
        value: What is compared with the bound.
        bound: The most that it may be; None: it is printed, and bound by nothing.
        unit: Of the value.
    """

    what: str
    ours: str
    bare: str
    value: float
    bound: float | None
    unit: str = "x"

    @property
    def missed(self) -> bool:
        return self.bound is not None and self.value > self.bound

    def __str__(self) -> str:
        bound = "-" if self.bound is None else f"{self.bound:.1f}"
        verdict = "" if self.bound is None else "MISSED" if self.missed else "ok"
        return (
            f"{self.what:<52} {self.ours:>12} {self.bare:>12} "
            f"{self.value:>9.2f} {bound:>7} {self.unit:<3} {verdict}"
        ).rstrip()


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def ratio(what: str, ours: list[float], bare: list[float], bound: float | None) -> Row:
    a, b = statistics.median(ours), statistics.median(bare)
    return Row(what, ms(a), ms(b), a / b, bound)


def plain(what: str, ours: list[float]) -> Row:
    """A row without another side, and without a bound."""
    seconds = statistics.median(ours)
    return Row(what, ms(seconds), "-", seconds * 1000, None, "ms")
