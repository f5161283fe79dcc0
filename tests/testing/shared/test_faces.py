"""Plain tests block, coroutines get the real thing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from qmpsnap.errors import QmpsnapError, Unsupported
from qmpsnap.fork import Child, Children
from qmpsnap.testing.shared.faces import Face, real


class Job:
    async def wait(self):
        return "done"


Job.__module__ = "qmpsnap.somewhere"


class Thing:
    """What a face stands for."""

    name = "thing"

    def __init__(self):
        self.loop = asyncio.get_running_loop()

    async def double(self, number, *, by=2):
        """Return more of it."""
        if number < 0:
            raise ValueError("below zero")
        return number * by

    def plain(self):
        return "plain"

    def job(self):
        return Job()

    @asynccontextmanager
    async def opened(self):
        yield Job()
        self.name = "left"

    @asynccontextmanager
    async def fork(self):
        children: Children[Any] = Children(2, None)
        children.tell(Child(1, Job()))
        children.tell(Child(0, error=QmpsnapError("no")))
        yield children

    async def count(self):
        for number in range(3):
            yield number


class Opener:
    def __init__(self):
        self.open = 0

    @asynccontextmanager
    async def __call__(self):
        self.open += 1
        with anyio.CancelScope():
            yield Thing()
        self.open -= 1


@pytest.fixture(scope="module")
def portal():
    with start_blocking_portal() as portal:
        yield portal


def test_face_blocks_in_plain_code_and_opens_one_connection(portal):
    opener = Opener()
    face = Face[Thing](portal, opener)
    assert opener.open == 0
    assert (face.double(3), face.double(3, by=5), face.plain(), face.name) == (6, 15, "plain", "thing")
    assert face.double.__doc__ == "Return more of it."
    assert face.job().wait() == "done"
    assert list(face.count()) == [0, 1, 2]
    with face.fork() as children:
        first, second = children
        assert (first.number, first.vm.wait(), first.error) == (1, "done", None)
        with pytest.raises(QmpsnapError, match="no"):
            second.vm  # noqa: B018 - it raises
    with pytest.raises(TypeError):
        iter(face)
    with face.opened() as job:
        assert job.wait() == "done"
    assert face.name == "left"
    assert opener.open == 1
    face.close()
    face.close()
    assert opener.open == 0


def test_face_opens_nothing_to_be_printed_and_nothing_after_its_test(portal):
    opener = Opener()
    face = Face[Thing](portal, opener)
    assert (repr(face), opener.open) == ("<blocking, not connected>", 0)
    face.double(3)
    assert repr(face).startswith("<blocking <tests.testing.shared.test_faces.Thing object at ")
    face.close()
    assert repr(face) == "<blocking, not connected>"
    with pytest.raises(Unsupported, match="the test that had this machine has ended"):
        face.double(3)
    assert opener.open == 0


def test_face_raises_what_was_raised(portal):
    face = Face[Thing](portal, Opener())
    with pytest.raises(ValueError, match="below zero"):
        face.double(-1)
    with pytest.raises(AttributeError):
        face.nothing()
    face.close()


async def test_coroutines_of_a_loop_share_one_real_thing_in_it(portal):
    opener = Opener()
    face = Face[Thing](portal, opener)
    async with real({"vm": face, "n": 1}) as outer, real({"a": face, "b": face}) as inner:
        assert outer["n"] == 1
        assert outer["vm"] is inner["a"] is inner["b"]
        assert isinstance(outer["vm"], Thing)
        assert outer["vm"].loop is asyncio.get_running_loop()
        assert opener.open == 1
    assert opener.open == 0
