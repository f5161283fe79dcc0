from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from qmpsnap.errors import Changed, InvalidTarget
from qmpsnap.model.files import Ask
from qmpsnap.model.view import DiskView, ViewLayer
from qmpsnap.run.keeper_state import claim
from qmpsnap.run.keepers import Keepers, remove_keepers, remove_left
from qmpsnap.run.survey import look
from qmpsnap.run.template_files import Partial


async def created(place: Path, kind: Literal["fork", "template"] = "fork") -> Keepers:
    """The images of a fork, or a template, of a machine with two layers."""
    files = [place / name for name in ("s1", "base")]
    for file in files:
        file.touch()
    layers = tuple(ViewLayer(str(file), "raw") for file in files)
    keepers = Keepers(kind, str(place / "t1"))
    await keepers.create([DiskView("vda", "t1", layers, virtual_size=1 << 20)], "t1", synced=False)
    return keepers


def states(place: Path) -> set[str]:
    return {keeper.state for keeper in look(Ask(survey=(str(place),))).keepers.values()}


async def test_each_layer_has_an_image_which_counts_until_it_is_released_or_removed(tmp_path: Path) -> None:
    keepers = await created(tmp_path)
    assert (sorted(keepers.made.values()), keepers.unkept) == (
        [str(tmp_path / "base"), str(tmp_path / "s1")],
        (),
    )
    found = look(Ask(survey=(str(tmp_path),)))
    assert {link.file for link in found.backing_links} == {*keepers.made}
    assert {keeper.state for keeper in found.keepers.values()} == {"needed"}
    keepers.release()  # as the kernel does when the process is killed
    found = look(Ask(survey=(str(tmp_path),)))
    assert ({keeper.state for keeper in found.keepers.values()}, found.backing_links) == ({"left"}, ())
    assert await keepers.remove() == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "s1"]
    assert await remove_keepers(keepers.made) == 0


async def test_image_that_is_removed_before_it_is_locked_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another client, to which it looked abandoned at that instant."""
    taken: list[str] = []

    def removed_first(file: str) -> int | None:
        if len(taken) < 1:
            Path(file).unlink()
        taken.append(file)
        return claim(file)

    monkeypatch.setattr("qmpsnap.run.keepers.claim", removed_first)
    keepers = await created(tmp_path)
    assert (len(taken), len(keepers.made), states(tmp_path)) == (3, 2, {"needed"})
    await keepers.remove()


async def test_image_that_cannot_be_removed_does_not_keep_the_others(tmp_path: Path) -> None:
    made = await created(tmp_path)
    made.release()
    keepers = made.made
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


async def test_images_that_a_killed_process_has_left_of_a_template_are_removed(tmp_path: Path) -> None:
    """Neither those of the process that makes it now, nor those of another template."""
    left, other = await created(tmp_path, "template"), str(tmp_path / "t2")
    left.release()
    unfinished = Partial(str(tmp_path / "t1"), 1 << 20)
    made, layers = await created(tmp_path, "template"), (str(tmp_path / "s1"), str(tmp_path / "base"))
    await remove_left(other, layers)
    assert {path for path in (*left.made, *made.made) if Path(path).exists()} == {*left.made, *made.made}
    await remove_left(str(tmp_path / "t1"), layers)
    assert {path for path in (*left.made, *made.made) if Path(path).exists()} == {*made.made}
    again = await created(tmp_path, "template")
    again.release()
    first = next(iter(again.made))
    Path(first).write_bytes(b"no image of ours")
    await remove_left(str(tmp_path / "t1"), layers)
    assert {path for path in again.made if Path(path).exists()} == {first}
    unfinished.close()
    await made.remove()
