from __future__ import annotations

from qmpsnap.model.meaning.errors import ERRORS
from qmpsnap.model.meaning.replies import EXIT_CODES


def test_every_exit_code_of_an_error_has_a_meaning():
    codes = {int(said.text.rpartition("Exit code ")[2].rstrip(".")) for said in ERRORS.values()}
    assert codes | {0, 2, 8} == set(EXIT_CODES)  # done, usage, and what the doctor found
