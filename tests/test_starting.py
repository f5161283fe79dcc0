from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from qmpsnap.errors import BadArgument, ConnectFailed, NotFound
from qmpsnap.model.start import Start
from qmpsnap.starting import another
from tests.each import each

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

LOCKED = 'Could not open backing file: Failed to get shared "write" lock'


class Machine:
    """All that is looked at before a machine is used."""

    def do(self) -> None: ...


class Suppressing:
    """The machine of a launcher that suppresses every error."""

    def __init__(self, _: Start) -> None:
        self.ended = False

    async def __aenter__(self) -> Machine:
        return Machine()

    async def __aexit__(self, *_: object) -> bool:
        self.ended = True
        return True


def returns_nothing(_: Start) -> None:
    pass


async def is_a_coroutine(_: Start) -> None:
    pass


async def is_a_generator(_: Start) -> AsyncIterator[Machine]:
    yield Machine()


@contextmanager
def is_not_asynchronous(_: Start) -> Iterator[Machine]:
    yield Machine()


@asynccontextmanager
async def gives_nothing(_: Start) -> AsyncIterator[None]:
    yield


@each(
    ("launcher", "said"),
    [
        (returns_nothing, "it has returned None; it has to return an asynchronous context manager"),
        (is_a_coroutine, "it has returned <coroutine object is_a_coroutine"),
        (is_a_generator, "it has returned <async_generator object is_a_generator"),
        (is_not_asynchronous, "it has returned <contextlib._GeneratorContextManager object"),
        (gives_nothing, "its context manager gives None; it has to return"),
    ],
)
async def test_launcher_that_is_written_wrongly_is_refused_with_what_it_has_to_return(
    launcher: Any, said: str
) -> None:
    with pytest.raises(BadArgument, match=said):
        async with another(launcher, Start()):
            raise AssertionError


async def test_error_that_a_launcher_suppresses_is_raised_and_its_machine_has_ended() -> None:
    launched: list[Suppressing] = []

    def launcher(start: Start) -> Suppressing:
        launched.append(Suppressing(start))
        return launched[-1]

    with pytest.raises(NotFound, match="this one"):
        async with another(launcher, Start()):  # type: ignore[type-var]
            raise NotFound("this one")
    assert [machine.ended for machine in launched] == [True]


@each(
    ("start", "message", "hinted"),
    [
        (Start(incoming=True), LOCKED, True),
        (Start(incoming=True), "invalid option", False),
        (Start(), LOCKED, False),
    ],
)
async def test_qemu_that_does_not_wait_for_vm_state_and_gets_no_lock_is_told_what_the_launcher_left_out(
    start: Start, message: str, *, hinted: bool
) -> None:
    @asynccontextmanager
    async def launcher(_: Start) -> AsyncIterator[Machine]:
        raise ConnectFailed(message, hint="as before")
        yield

    with pytest.raises(ConnectFailed) as caught:
        async with another(launcher, start):  # type: ignore[type-var]
            raise AssertionError
    assert ("append the arguments of the Start" in caught.value.hint) is hinted
    assert hinted or caught.value.hint == "as before"
