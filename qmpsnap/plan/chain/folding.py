"""Which layers of a chain are merged into which of them, so that as few bytes as possible are copied.

A chain is numbered from 0, the active layer. The boundary above layer i, between i - 1 and i, is what layer i
holds: a moment, or nothing that has a name. Where it goes, the two layers become one. Layers without a
boundary between them are a run: one of them receives the data of all the others, those above it by a commit
and those below it by a stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Layers that become one.

    Attributes:
        top: Index of the newest.
        bottom: Index of the oldest.
        receiver: Index of the one that receives the data of the others.
        copied: Bytes of those others on the host: no more than these are copied.
    """

    top: int
    bottom: int
    receiver: int
    copied: int


def merged(sizes: Sequence[int], gone: Collection[int], needed: Collection[int] = ()) -> tuple[Run, ...]:
    """The runs of a chain without some of its boundaries, each with the cheapest receiver; the newest first.

    Args:
        sizes: Bytes of each layer on the host, active first.
        gone: Boundaries that go, each by the index of the layer below it.
        needed: Layers on which something else stands, which therefore stay: no data leaves them.
    """
    found = []
    top = 0
    for index in range(1, len(sizes) + 1):
        if index not in gone:
            if index - top > 1:
                found.append(next(ways(sizes, top, index - 1, needed)))
            top = index
    return tuple(found)


def ways(sizes: Sequence[int], top: int, bottom: int, needed: Collection[int] = ()) -> Iterator[Run]:
    """Every receiver that a run may have, the cheapest first; of equal ones the oldest layer.

    Args:
        sizes: As in `merged`.
        top: Index of the newest layer of the run.
        bottom: Index of the oldest one.
        needed: As in `merged`. Of a run only the top can be needed: what stands on any other is in its way.
    """
    total = sum(sizes[top : bottom + 1])
    receivers = [top] if top in needed else range(bottom, top - 1, -1)
    runs = [Run(top, bottom, receiver, total - sizes[receiver]) for receiver in receivers]
    yield from sorted(runs, key=lambda run: run.copied)


def fewest(
    sizes: Sequence[int],
    free: Collection[int],
    depth: int,
    needed: Collection[int] = (),
    certain: Collection[int] = (),
) -> frozenset[int]:
    """The boundaries to remove so that `depth` layers are left, or as few as can be, with least copied.

    Of ways that cost the same, that which removes fewer and older boundaries.

    Args:
        sizes: As in `merged`.
        free: Boundaries that may go.
        depth: How many layers may be left, at least 1.
        needed: As in `merged`.
        certain: Boundaries among the free ones that go in any case.
    """
    count = len(sizes)
    left = max(depth, count - len(set(free)))
    stays = [index not in certain for index in range(count + 1)]
    # Of at most so many runs, from each layer on: bytes copied, boundaries removed, and where the first ends.
    best: list[list[tuple[int, int, int] | None]] = [[None] * count + [(0, 0, count)]]
    for _ in range(left):
        rest = [way if stays[index] else None for index, way in enumerate(best[-1])]
        best.append([*(_cheapest(sizes, free, needed, start, rest) for start in range(count)), (0, 0, count)])
    removed: list[int] = []
    start = 0
    while start < count and (found := best[left][start]) is not None:
        removed += range(start + 1, found[2] + 1)
        start, left = found[2] + 1, left - 1
    return frozenset(removed)


def _cheapest(
    sizes: Sequence[int],
    free: Collection[int],
    needed: Collection[int],
    start: int,
    rest: Sequence[tuple[int, int, int] | None],
) -> tuple[int, int, int] | None:
    """The cheapest first run from a layer on, with the cheapest of what follows it; None: there is none."""
    found: tuple[int, int, int] | None = None
    total = biggest = 0
    for end in range(start, len(sizes)):
        if end > start and end not in free:
            break
        total, biggest = total + sizes[end], max(biggest, sizes[end])
        after = rest[end + 1]
        if after is None:
            continue
        stays = sizes[start] if start in needed else biggest
        way = (after[0] + total - stays, after[1] + end - start, end)
        if found is None or way[:2] < found[:2]:  # of equal ones the shorter run: older boundaries go
            found = way
    return found
