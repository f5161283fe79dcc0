from __future__ import annotations

from msgspec.structs import replace

from qmpsnap.model.interrupted import finishing
from tests.model.records import COMMIT, MIRROR


def test_what_can_be_completed_is_waited_for() -> None:
    assert finishing(COMMIT, vanished=False) == ("qmpsnap", "job", "wait", "0a1b2c3d")
    assert finishing(MIRROR, vanished=True) == ("qmpsnap", "job", "wait", "0a1b2c3d")


def test_a_commit_that_was_stopped_is_repeated() -> None:
    assert finishing(COMMIT, vanished=True) == ("qmpsnap", "commit", "vda", "--base", "/d/base")
    lower = replace(COMMIT, chains={"vda": ("/d/s2", "/d/s1", "nbd://host/x")})
    assert finishing(lower, vanished=True) == (
        "qmpsnap", "commit", "vda", "--top", "/d/s1", "--base", "nbd://host/x",
    )  # fmt: skip
