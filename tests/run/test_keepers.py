from __future__ import annotations

from pathlib import Path

import pytest

from qmpsnap.errors import Changed, InvalidTarget
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.run.keepers import create_keepers, remove_keepers


async def made(place: Path) -> dict[str, str]:
    """The images of a template of two layers."""
    files = [place / name for name in ("s1", "base")]
    for file in files:
        file.touch()
    layers = tuple(ViewLayer(str(file), "raw") for file in files)
    keepers: dict[str, str] = {}
    view = DiskView("vda", "t1", layers, virtual_size=1 << 20)
    assert await create_keepers([view], "t1", keepers, synced=False) == ()
    return keepers


async def test_each_layer_has_an_image_and_each_is_removed(tmp_path: Path) -> None:
    keepers = await made(tmp_path)
    assert sorted(keepers.values()) == [str(tmp_path / "base"), str(tmp_path / "s1")]
    assert await remove_keepers(keepers) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "s1"]
    assert await remove_keepers(keepers) == 0


async def test_image_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path) -> None:
    keepers = await made(tmp_path)
    first = next(iter(keepers))
    Path(first).write_bytes(b"no image of ours")
    with pytest.raises(InvalidTarget, match="no longer empty") as caught:
        await remove_keepers(keepers)
    assert caught.value.changed is Changed.YES
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["base", "s1", first.rpartition("/")[2]]
    )
    with pytest.raises(InvalidTarget) as caught:
        await remove_keepers(keepers)
    assert caught.value.changed is Changed.NO
