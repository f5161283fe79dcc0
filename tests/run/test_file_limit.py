from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from qmpsnap.errors import Changed, InvalidTarget
from qmpsnap.run.file_limit import require_room
from qmpsnap.testing.drawing import graph
from qmpsnap.testing.fake import FakeTarget
from tests.run.limits import free_descriptors
from tests.run.operations import vm_of
from tests.run.test_process import descriptors


@pytest.mark.parametrize("free", [0, 1, 7])
def test_too_little_room_is_refused_with_what_helps_and_nothing_stays_open(free):
    before = descriptors()
    with free_descriptors(free), pytest.raises(InvalidTarget) as refused:
        require_room(8)
    assert refused.value.message == (
        f"this process has too many files open: {free} more can be opened, and this needs up to 8"
    )
    assert (refused.value.hint, refused.value.changed) == ("raise the limit: ulimit -n", Changed.NO)
    assert descriptors() == before


def test_just_enough_room_is_enough_for_all_that_ask_at_once():
    with ThreadPoolExecutor(4) as pool, free_descriptors(8):
        assert [*pool.map(require_room, [8] * 400)] == [None] * 400


async def test_operation_of_a_process_at_its_limit_is_refused_before_anything_is_sent():
    fake = FakeTarget(graph(vda="base*"))
    with free_descriptors(31), pytest.raises(InvalidTarget, match="31 more can be opened"):
        await vm_of(fake).snapshot("one")
    assert (fake.state, fake.files.records) == (graph(vda="base*"), [])
