"""Chooses which layers of a chain are merged into which, so that as few bytes as possible are copied.

The layers of a chain are numbered from 0, the active layer. Boundary i lies between layers i - 1 and i, and
stands for the content of layer i: a moment, or content without a name. If boundary i is removed, the two
layers are merged. Layers without a boundary between them form a run. One layer of a run receives the data of
all others: those above it are committed into it, those below it are streamed into it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive layers that are merged.

    Attributes:
        top: Index of the newest layer.
        bottom: Index of the oldest layer.
        receiver: Index of the layer that receives the data of the others.
        copied: Bytes of the other layers on the host: the job copies no more than these.
    """

    top: int
    bottom: int
    receiver: int
    copied: int


def merged(sizes: Sequence[int], gone: Collection[int], needed: Collection[int] = ()) -> tuple[Run, ...]:
    """The runs of a chain after boundaries are removed, newest first, each with its cheapest receiver.

    Args:
        sizes: Bytes of each layer on the host, active first.
        gone: Boundaries to remove, each by the index of the layer below it.
        needed: Layers on which something else is based; they stay, so each is the receiver of its run.
    """
    runs = []
    top = 0
    for index in range(1, len(sizes) + 1):
        if index not in gone:
            if index - top > 1:
                runs.append(next(ways(sizes, top, index - 1, needed)))
            top = index
    return tuple(runs)


def ways(sizes: Sequence[int], top: int, bottom: int, needed: Collection[int] = ()) -> Iterator[Run]:
    """The run with each possible receiver, the cheapest first; of equal cost, the oldest receiver first.

    Args:
        sizes: As in `merged`.
        top: Index of the newest layer of the run.
        bottom: Index of the oldest layer of the run.
        needed: As in `merged`. Only the top layer of a run can be in it: the boundary above any other needed
            layer stays.
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
    """The boundaries to remove so that at most `depth` layers, or as few as possible, remain.

    The solution copies the fewest bytes. Of solutions with equal cost, it removes fewer and older boundaries.

    Args:
        sizes: As in `merged`.
        free: Boundaries that may be removed.
        depth: How many layers may remain, at least 1.
        needed: As in `merged`.
        certain: Boundaries among the free ones that are removed in any case.
    """
    count = len(sizes)
    left = max(depth, count - len(set(free)))
    stays = [index not in certain for index in range(count + 1)]
    # best[n][i], for at most n runs from layer i on: bytes copied, boundaries removed, end of the first run.
    best: list[list[tuple[int, int, int] | None]] = [[None] * count + [(0, 0, count)]]
    for _ in range(left):
        rest = [way if stays[index] else None for index, way in enumerate(best[-1])]
        best.append([*(_cheapest(sizes, free, needed, start, rest) for start in range(count)), (0, 0, count)])
    removed: list[int] = []
    start = 0
    while start < count and (run := best[left][start]) is not None:
        removed += range(start + 1, run[2] + 1)
        start, left = run[2] + 1, left - 1
    return frozenset(removed)


def _cheapest(
    sizes: Sequence[int],
    free: Collection[int],
    needed: Collection[int],
    start: int,
    rest: Sequence[tuple[int, int, int] | None],
) -> tuple[int, int, int] | None:
    """The first run from layer `start` on that is cheapest together with `rest`; None if there is none."""
    cheapest: tuple[int, int, int] | None = None
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
        if cheapest is None or way[:2] < cheapest[:2]:  # of equal cost, the shorter run: removes older ones
            cheapest = way
    return cheapest
