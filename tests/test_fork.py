from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from qmpsnap import fork as forks
from qmpsnap.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


async def test_fork_ends_when_the_template_fails_before_a_child_has_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def source_of(*_: object) -> None:
        pass

    async def template_of(*_: object, began: Callable[..., None], **__: object) -> None:
        began((), None, "c1", None)
        raise NotFound("no checkpoint 'c1'")

    async def memory_of(_: object) -> int:
        return 64 << 20

    @asynccontextmanager
    async def waiting(*_: object, **__: object) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(forks, "memory_of", memory_of)
    monkeypatch.setattr(forks, "source_of", source_of)
    monkeypatch.setattr(forks, "template_of", template_of)
    monkeypatch.setattr(forks, "waiting", waiting)
    with anyio.fail_after(30), pytest.raises(NotFound):
        async with forks.fork(None, 3, None, of="c1", directory=str(tmp_path)):  # type: ignore[arg-type]
            pass
    assert list(tmp_path.iterdir()) == []
