"""The event loop that everything here needs: asyncio's."""

from __future__ import annotations

import asyncio

from qmpsnap.errors import Unsupported


def asyncio_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop.

    Raises:
        Unsupported: When another library runs this code, such as trio.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise Unsupported(
            "this needs asyncio, and another library runs it",
            feature="asyncio",
            hint="start it with asyncio.run(), or with anyio.run() and its backend asyncio",
        ) from None
