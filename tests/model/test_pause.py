"""Why a guest is not running, as data."""

from __future__ import annotations

from qmpsnap.model.pause import Pause


def test_pause_is_plain_json():
    assert Pause("io-error", "No.", "mend it", {"vda": "failed"}).to_json() == {
        "state": "io-error",
        "cause": "No.",
        "advice": "mend it",
        "failed": {"vda": "failed"},
    }
