"""The objects by which a test uses a shared machine: blocking in a plain test, real in an async test.

The calls of a plain test run in the plugin's event loop. A coroutine gets its own connection in its own loop,
whichever plugin runs that loop, because a connection can be used only in the loop that made it.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

import anyio.to_thread

from qmpsnap.errors import Unsupported
from qmpsnap.fork import Child, Children
from qmpsnap.run.event_loop import asyncio_loop
from qmpsnap.testing.shared.calls import Calls, Inside

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

T = TypeVar("T")
_OURS: Final = "qmpsnap."


class Blocking:
    """Wraps an object so that its methods block: `vm.snapshot("one")` where a coroutine would await it.

    Its async context managers work with `with`, and its async iterators with `for`. An object that it returns
    and that has coroutine methods is wrapped, too.
    """

    def __init__(self, calls: Calls, get: Callable[[], object]) -> None:
        self._calls = calls
        self._get = get

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._get(), name)
        if not inspect.ismethod(value):
            return _make_blocking(self._calls, value)

        def method(*arguments: object, **options: object) -> Any:
            async def run() -> object:
                result = value(*arguments, **options)
                return await result if inspect.isawaitable(result) else result

            return _make_blocking(self._calls, self._calls.call(run))

        method.__doc__ = value.__doc__
        return method

    def __iter__(self) -> Iterator[Any]:
        return _each(self._calls, aiter(cast("AsyncIterator[Any]", self._get())))

    def __repr__(self) -> str:
        return f"<blocking {self._get()!r}>"


def _make_blocking(calls: Calls, value: Any) -> Any:
    if isinstance(value, AbstractAsyncContextManager):
        return Inside(calls, value, partial(_make_blocking, calls))
    if isinstance(value, AsyncIterator):
        return _each(calls, value)
    if isinstance(value, Child | Children):
        return Blocking(calls, lambda: value)
    kind = type(value)
    if kind.__module__.startswith(_OURS) and any(
        inspect.iscoroutinefunction(member) for member in vars(kind).values()
    ):
        return Blocking(calls, lambda: value)
    return value


def _each(calls: Calls, iterator: AsyncIterator[Any]) -> Iterator[Any]:
    end = object()
    while (value := calls.call(anext, iterator, end)) is not end:
        yield _make_blocking(calls, value)


class Face(Blocking, Generic[T]):
    """An object of the shared machine, such as its VM, for a single test.

    Used directly, it blocks. `here` gives a coroutine the real object.

    Args:
        portal: The plugin's event loop.
        open: Opens a connection in the running loop.
        through: For an object that allows only one connection: makes an object for coroutines that uses the
            connection in the plugin's loop. None: each coroutine gets its own connection.
    """

    def __init__(
        self,
        portal: BlockingPortal,
        open: Callable[[], AbstractAsyncContextManager[T]],  # noqa: A002
        *,
        through: Callable[[T], T] | None = None,
    ) -> None:
        super().__init__(Calls(portal), self._object)
        self._open = open
        self._through = through
        self._opening = threading.Lock()
        self._opened: list[T] = []
        self._is_closed = False
        self._inside: dict[asyncio.AbstractEventLoop, T] = {}

    def _object(self) -> T:
        with self._opening:  # a test may have threads
            if self._is_closed:
                raise Unsupported(
                    "the test that had this machine has ended",
                    feature="a machine after its test",
                    hint="each test gets it from its own fixtures",
                )
            if not self._opened:
                self._opened.append(Inside(self._calls, self._open(), lambda value: value).__enter__())
            return self._opened[0]

    def close(self) -> None:
        """Leave whatever plain code has entered, close its connection, and refuse another one."""
        with self._opening:
            self._is_closed = True
            self._opened.clear()
        self._calls.leave_all()

    def __repr__(self) -> str:
        """Return a text without opening a connection: a report may ask for it after the test's end."""
        return f"<blocking {self._opened[0]!r}>" if self._opened else "<blocking, not connected>"

    @asynccontextmanager
    async def here(self) -> AsyncIterator[T]:
        """Yield the real object in the running loop; callers within the block of the first share it.

        Raises:
            Unsupported: When the loop is not asyncio's.
        """
        try:
            loop = asyncio_loop()
        except Unsupported as error:
            error.hint = 'under anyio, override the fixture anyio_backend, and return "asyncio"'
            raise
        if self._through is not None:
            yield self._through(await anyio.to_thread.run_sync(self._object))
            return
        if loop in self._inside:
            yield self._inside[loop]
            return
        async with self._open() as connection:
            self._inside[loop] = connection
            try:
                yield connection
            finally:
                del self._inside[loop]


@asynccontextmanager
async def real(fixtures: dict[str, object]) -> AsyncIterator[dict[str, object]]:
    """Yield the arguments of a coroutine, with each `Face` replaced by the real object."""
    name, face = next(
        ((name, value) for name, value in fixtures.items() if isinstance(value, Face)), ("", None)
    )
    if face is None:
        yield fixtures
        return
    async with cast("Face[object]", face).here() as value, real({**fixtures, name: value}) as rest:
        yield rest
