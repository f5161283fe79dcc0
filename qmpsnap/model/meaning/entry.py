"""An entry of a table of meanings."""

from __future__ import annotations

from msgspec import Struct


class Said(Struct, frozen=True):
    """What one word means; commands stand between backticks.

    Attributes:
        text: Its meaning, as one or more sentences.
        advice: What to do about it; "" when there is nothing to do.
    """

    text: str
    advice: str = ""
