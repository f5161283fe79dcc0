from __future__ import annotations

from io import BytesIO

import pytest

from qmpsnap.testing.writer import BLOCK_BYTES, Writes
from tests.each import each

WRITES = Writes(seed=3, blocks=16, burst=4)


def image(writes: Writes, numbers: dict[int, int]) -> BytesIO:
    """A disk of zeros, but for the blocks named, which hold these writes."""
    return BytesIO(
        b"".join(
            writes.content(numbers[block]) if block in numbers else bytes(BLOCK_BYTES)
            for block in range(writes.blocks)
        )
    )


def test_content_is_one_block_of_text_that_starts_with_its_number():
    content = WRITES.content(8)
    assert len(content) == BLOCK_BYTES
    assert content.startswith(b"4000002\n4000003\n")


def test_content_differs_between_writes_to_one_block():
    runs = [*range(10), *range(8190, 8200), *range(16380, 16390), 65535]
    numbers = [4 * run + index for run in runs for index in range(4)]
    written = [(number % 4, WRITES.content(number)) for number in numbers]
    assert len(set(written)) == len(written)


def test_content_differs_between_seeds():
    assert WRITES.content(0) != Writes(seed=4, blocks=16).content(0)


def test_block_goes_through_a_burst_in_order():
    first = WRITES.block(20)
    assert first % 4 == 0
    assert [WRITES.block(number) for number in range(20, 24)] == [first, first + 1, first + 2, first + 3]


def test_block_reaches_every_block_of_the_range():
    assert set(WRITES.replay(4 * 40)) == set(range(16))


def test_replay_holds_the_last_write_to_each_block():
    replay = WRITES.replay(4 * 40)
    assert all(WRITES.block(number) == block for block, number in replay.items())
    assert max(replay.values()) == 4 * 40 - 1


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_count_in_finds_the_count_of_a_replay(count):
    assert WRITES.count_in(image(WRITES, WRITES.replay(count)), high=120) == count


def test_count_in_counts_both_ends_of_the_range_in():
    disk = image(WRITES, WRITES.replay(50))
    assert WRITES.count_in(disk, low=50, high=60) == 50
    assert WRITES.count_in(disk, low=40, high=50) == 50


def test_count_in_finds_a_count_past_the_period_of_the_contents():
    count = 4 * 65536 + 6
    assert WRITES.count_in(image(WRITES, WRITES.replay(count)), low=count - 9, high=count + 9) == count


def test_count_in_refuses_when_the_count_is_not_in_the_range():
    disk = image(WRITES, WRITES.replay(50))
    with pytest.raises(ValueError, match="no count from 51 to 60 writes"):
        WRITES.count_in(disk, low=51, high=60)
    with pytest.raises(ValueError, match="no count from 0 to 49 writes"):
        WRITES.count_in(disk, high=49)


def test_count_in_refuses_when_one_write_was_lost():
    numbers = WRITES.replay(100)
    lost = numbers[5]
    numbers[5] = max(number for number in range(lost) if WRITES.block(number) == 5)
    with pytest.raises(ValueError, match=f"block 5 holds write {numbers[5]}, after 100 .* hold write {lost}"):
        WRITES.count_in(image(WRITES, numbers), low=100, high=100)


def test_count_in_refuses_when_a_later_write_is_there_and_an_earlier_is_not():
    numbers = WRITES.replay(8)
    del numbers[WRITES.block(4)]
    with pytest.raises(ValueError, match="no count from"):
        WRITES.count_in(image(WRITES, numbers), high=20)


def test_count_in_refuses_a_torn_block_when_its_head_is_right():
    disk = image(WRITES, WRITES.replay(100))
    disk.getbuffer()[3 * BLOCK_BYTES + 4096 : 4 * BLOCK_BYTES] = bytes(BLOCK_BYTES - 4096)
    with pytest.raises(ValueError, match="block 3 holds data of no write"):
        WRITES.count_in(disk, high=100)


def test_count_in_refuses_an_image_that_is_too_short():
    with pytest.raises(ValueError, match="block 15 holds data of no write"):
        WRITES.count_in(BytesIO(bytes(15 * BLOCK_BYTES)), high=0)


@each("bad", [{"burst": 3}, {"burst": 0}, {"burst": 65, "blocks": 65}, {"seed": 65536}])
def test_writes_refuses_what_the_guest_cannot_do(bad):
    with pytest.raises(ValueError, match="not"):
        Writes(**{"blocks": 16} | bad)
