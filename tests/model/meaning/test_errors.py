from __future__ import annotations

from qmpsnap.model.meaning.entry import Said
from qmpsnap.model.meaning.errors import ERRORS


def test_an_error_means_what_its_docstring_says():
    assert ERRORS["Busy"] == Said(
        "A job holds the node. Exit code 3.",
        "Wait for the job with `qmpsnap job wait ID`, end it with `qmpsnap job cancel ID`, or give --wait.",
    )
    assert list(ERRORS)[:2] == ["QmpsnapError", "Refused"]
