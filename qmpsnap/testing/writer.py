"""What the guest's writer writes, so that any image can be compared with it.

Pure. Writes are numbered from 0. A *burst* of neighbouring blocks is written in order, one write after
the other, each with O_DIRECT; then the next burst elsewhere. Block and content are functions of the
write's number: an image that was written to by `count` writes holds exactly `Writes.replay(count)`.

A block's content is text, 8192 lines of 7 digits, whose first line tells the write's number: looked
at with hexdump it says by itself what it is, and a torn block is seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

__all__ = ["BLOCK_BYTES", "WRITER_SCRIPT", "Writes"]

BLOCK_BYTES: Final = 65536
_LINES: Final = BLOCK_BYTES // 8
# Bursts until contents repeat.
_PERIOD: Final = 65536
_TORN: Final = -1

# One dd costs 2.7 ms under TCG, and each further block of its burst 0.25 ms.
# longest: the longest time in microseconds between two ends of bursts, since somebody removed that file.
WRITER_SCRIPT: Final = (
    r"""
device=$1 seed=$2 slots=$3 burst=$4 pause_us=$5
cd /run/writer/${device##*/} || exit
first=$((1000000 * (1 + seed % 8)))
seq $first $((first + PERIOD + burst * LINES - 1)) > pattern
read -r _ _ _ _ _ _ sectors _ < /sys/block/${device##*/}/stat
echo $sectors > sectors
run=0 longest=0 status=0 now=$EPOCHREALTIME
: > started
while [ ! -e stop ] && [ $status = 0 ]; do
    last=${now%.*}${now#*.}
    dd if=pattern of=$device bs=BLOCK_BYTES count=$burst iflag=skip_bytes,fullblock oflag=direct \
        conv=notrunc skip=$((run % PERIOD * 8)) 2> error \
        seek=$((((run + seed * 7919) * 2654435761 & 0xffffffff) / 4096 % slots * burst))
    status=$?
    run=$((run + 1))
    now=$EPOCHREALTIME
    [ -e longest ] || longest=0
    gap=$((${now%.*}${now#*.} - last))
    [ $gap -le $longest ] || { longest=$gap; echo $gap > longest; }
    [ $pause_us = 0 ] || { usleep $pause_us; now=$EPOCHREALTIME; }
done
echo $status > ended
""".replace("BLOCK_BYTES", str(BLOCK_BYTES))
    .replace("PERIOD", str(_PERIOD))
    .replace("LINES", str(_LINES))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """The endless sequence of writes that a seed defines.

    Attributes:
        seed: Two seeds that differ modulo 8 never write the same content.
        blocks: Blocks of 64 KiB at the start of the disk that are written to; a multiple of `burst`.
        burst: Blocks written one after the other at one place, at most 64.
    """

    seed: int = 0
    blocks: int
    burst: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.burst <= 64:
            raise ValueError(f"burst {self.burst} is not in 1..64")
        if self.blocks < self.burst or self.blocks % self.burst:
            raise ValueError(f"{self.blocks} blocks are not a multiple of bursts of {self.burst}")
        if not 0 <= self.seed < 1 << 16:
            raise ValueError(f"seed {self.seed} is not in 0..65535")

    @property
    def slots(self) -> int:
        """Places that a burst can go to."""
        return self.blocks // self.burst

    def block(self, number: int) -> int:
        """Return the block that write `number` goes to."""
        run, index = divmod(number, self.burst)
        return ((run + self.seed * 7919) * 2654435761 & 0xFFFFFFFF) // 4096 % self.slots * self.burst + index

    def content(self, number: int) -> bytes:
        """Return the 64 KiB that write `number` writes."""
        return _lines(self._first_line(number), _LINES)

    def replay(self, count: int) -> dict[int, int]:
        """Return, for each block that the first `count` writes touch, the last write to it."""
        return {self.block(number): number for number in range(count)}

    def count_in(self, image: BinaryIO, *, low: int = 0, high: int) -> int:
        """Return how many writes the disk has received, by its content alone.

        Every block of the written range is read and compared whole; blocks not yet written must be
        zero.

        Args:
            image: The disk's content, raw, at least `blocks` blocks long; unbuffered is best.
            low: The fewest writes that it can have received (included).
            high: The most writes that it can have received (included).
        Returns:
            The smallest count in `low..high` whose replay is the image.
        Raises:
            ValueError: When there is none; the message names a block that is wrong.
        """
        content = dict(self._observed(image))
        expected = self.replay(low)
        wrong = {block for block in range(self.blocks) if not self._same(content[block], expected.get(block))}
        for count in range(low, high + 1):
            if count > low:
                block = self.block(count - 1)
                wrong.discard(block)
                if not self._same(content[block], count - 1):
                    wrong.add(block)
            if not wrong:
                return count
        block = min(wrong, key=lambda block: (content[block] != _TORN, block))
        last = self.replay(high).get(block)
        raise ValueError(
            f"no count from {low} to {high} writes gives this disk: block {block} holds "
            f"{_spelled(content[block])}, after {high} writes it should hold {_spelled(last)}"
        )

    def _first_line(self, number: int) -> int:
        run, index = divmod(number, self.burst)
        return 1000000 * (1 + self.seed % 8) + run % _PERIOD + index * _LINES

    def _same(self, content: int | None, number: int | None) -> bool:
        if number is None:
            return content is None
        return content == number % (_PERIOD * self.burst)

    def _observed(self, image: BinaryIO) -> Iterator[tuple[int, int | None]]:
        """Yield for each block which write (modulo the period) it holds; None for zeros."""
        zeros = bytes(BLOCK_BYTES)
        pattern = _lines(self._first_line(0), _PERIOD + self.burst * _LINES)
        image.seek(0)
        for block in range(self.blocks):
            data = image.read(BLOCK_BYTES)
            yield block, None if data == zeros else self._identify(block % self.burst, data, pattern)

    def _identify(self, index: int, data: bytes, pattern: bytes) -> int:
        at = pattern.find(data[:8]) // 8
        if data != pattern[at * 8 : at * 8 + BLOCK_BYTES] or not 0 <= at - index * _LINES < _PERIOD:
            return _TORN
        return (at - index * _LINES) * self.burst + index


def _lines(first: int, count: int) -> bytes:
    return ("\n".join(map(str, range(first, first + count))) + "\n").encode()


def _spelled(number: int | None) -> str:
    match number:
        case None:
            return "zeros"
        case -1:
            return "data of no write"
        case _:
            return f"write {number}"
