"""What changes files is refused on a disk that is attached read-only."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.model.graph import Disk
from qmpsnap.plan.checks.read_only import refuse_read_only
from qmpsnap.testing.drawing import chain

DISK = chain("base <- s1*")


def test_read_only_disk_is_refused_and_a_writable_or_empty_one_is_not() -> None:
    refuse_read_only(DISK, "stream")
    refuse_read_only(Disk("cd0", read_only=True), "stream")
    with pytest.raises(Unsupported, match="disk 'vda' is read-only") as caught:
        refuse_read_only(replace(DISK, read_only=True), "stream")
    assert (caught.value.feature, caught.value.hint) == (
        "stream of a read-only disk",
        "attach it read-write, or shut the machine off and work on its images",
    )
