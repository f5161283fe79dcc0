"""Which merges of layers of different sizes are refused; that the others keep every byte, QEMU has shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from qmpsnap.errors import Unsupported
from qmpsnap.plan.chain.layers import refuse_commit_of_shorter, refuse_stream_of_shorter
from qmpsnap.testing.drawing import chain
from tests.each import each

if TYPE_CHECKING:
    from qmpsnap.model.graph import Disk


def disk(*sizes: int) -> Disk:
    """A disk whose layers have these sizes, base first."""
    drawn = chain(" <- ".join(("base", "s1", "s2", "s3")[: len(sizes)]) + "*")
    layers = zip(drawn.layers, sizes[::-1], strict=True)
    return replace(drawn, layers=tuple(replace(layer, virtual_size=size) for layer, size in layers))


@each(
    ("sizes", "into", "base", "refused"),
    [
        ((4, 4, 4, 4), 0, 3, ""),
        ((1, 2, 3, 4), 0, 3, ""),
        ((4, 2, 4, 4), 0, 3, "/images/s1.qcow2 has 2 bytes, /images/base.qcow2 below it has 4"),
        ((4, 4, 2, 4), 0, 3, "/images/s2.qcow2 has 2 bytes, /images/base.qcow2 below it has 4"),
        ((4, 2, 4, 4), 0, 2, ""),  # the shorter one stays
        ((4, 2, 4, 4), 0, 4, ""),  # nothing is read from below any more
        ((4, 2, 4, 4), 1, 3, "/images/s1.qcow2 has 2 bytes"),
        ((4, 2, 4, 2), 0, 3, ""),  # the receiver does not see beyond the shorter one's end
        ((3, 2, 2, 3), 0, 3, "/images/s2.qcow2 has 2 bytes"),
    ],
)
def test_stream_is_refused_where_old_bytes_would_be_read_again(
    sizes: tuple[int, ...], into: int, base: int, refused: str
) -> None:
    if not refused:
        refuse_stream_of_shorter(disk(*sizes), into=into, base=base)
        return
    with pytest.raises(Unsupported, match=refused) as caught:
        refuse_stream_of_shorter(disk(*sizes), into=into, base=base)
    assert "without a base" in caught.value.hint


@each(
    ("sizes", "top", "base", "refused"),
    [
        ((4, 4, 4, 4), 0, 3, ""),
        ((1, 2, 3, 4), 0, 3, ""),
        ((1, 2, 3, 4), 1, 3, ""),
        ((4, 2, 4, 4), 1, 3, "s1.qcow2 has 2 bytes.* would become visible again"),
        ((4, 2, 4, 4), 2, 3, "s1.qcow2 has 2 bytes.* would become visible again"),
        ((4, 2, 4, 4), 1, 2, ""),
        ((4, 2, 4, 4), 0, 3, ""),  # an active commit copies the zeroes
        ((4, 4, 4, 2), 0, 3, "s3.qcow2 has 2 bytes.*: vda would grow to that"),
        ((4, 4, 4, 2), 1, 3, ""),
        ((2, 4, 2, 2), 0, 2, "s3.qcow2 has 2 bytes.*: vda would grow"),
        ((2, 4, 2, 2), 0, 3, ""),
    ],
)
def test_commit_is_refused_where_the_guest_would_read_other_bytes_or_more(
    sizes: tuple[int, ...], top: int, base: int, refused: str
) -> None:
    if not refused:
        refuse_commit_of_shorter(disk(*sizes), top=top, base=base)
        return
    with pytest.raises(Unsupported, match=refused) as caught:
        refuse_commit_of_shorter(disk(*sizes), top=top, base=base)
    assert caught.value.hint == "stream instead, which keeps all data: qmpsnap stream vda"
