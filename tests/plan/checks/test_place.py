from __future__ import annotations

import pytest

from qmpsnap.errors import InvalidTarget, Refused, TargetExists
from qmpsnap.model.files import FileFact
from qmpsnap.plan.intent import Checkpoint, Commit, Intent, Mirror, Save, Snapshot
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake_files import FakeFiles
from qmpsnap.testing.fake_machine import a_machine
from tests.each import each
from tests.plan.scenes import planned

TWO = graph(vda="base <- s1*")
TOO_LONG = "the name is too long for the file system"


class Everywhere(dict[str, FileFact]):
    """Every path but the chain's is so."""

    def __init__(self, known: dict[str, FileFact], kind: str, problem: str = "") -> None:
        super().__init__(known)
        self._as = (kind, problem)

    def __contains__(self, path: object) -> bool:
        return True

    def __missing__(self, path: str) -> FileFact:
        kind, problem = self._as
        hint = "choose a shorter name" if problem else ""
        return FileFact(kind, real=path, problem=problem, hint=hint)  # type: ignore[arg-type]


@each(
    "intent",
    [
        Snapshot("n1"),
        Snapshot("n1", files={"vda": "/images/x"}, disks=("vda",)),
        Mirror("vda", "/images/copy", "pivot"),
        Checkpoint("c1"),
        Checkpoint("c1", mode="in-place"),
        Save("/images/m"),
        Commit("vda"),
    ],
)
@each(
    ("kind", "problem", "error", "says"),
    [
        ("other", TOO_LONG, InvalidTarget, TOO_LONG),
        ("other", "permission denied", InvalidTarget, "permission denied"),
        ("other", "", Refused, "exist"),  # a device, or a socket
        ("directory", "", Refused, "exist|is a directory"),
        ("symlink", "no such file or directory", Refused, "exist"),
    ],
)
def test_a_name_that_cannot_be_looked_up_is_not_called_one_that_exists(
    intent: Intent, kind: str, problem: str, error: type[Refused], says: str
) -> None:
    files = FakeFiles(TWO)
    files.facts = Everywhere(files.facts, kind, problem)
    with pytest.raises(error, match=says) as caught:
        planned(intent, TWO, files=files, machine=a_machine(TWO))
    assert isinstance(caught.value, TargetExists) <= (not problem or kind == "symlink")
    if problem == TOO_LONG:
        assert caught.value.hint.startswith("choose a shorter name")
