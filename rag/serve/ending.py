"""Work that ends before it is done: its client hangs up, its thread has to be stopped, or the server itself ends.

Knows requests, threads and signals; nothing of what the work is.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

import uvicorn
from starlette.types import Receive

T = TypeVar("T")

STOP_S: Final = 0.1
"""How often a thread is told to stop until it has."""

_told: list[Callable[[], None]] = []


def when_server_ends(tell: Callable[[], None]) -> None:
    """`tell` is called on the event loop as soon as the server is asked to end, before it waits for requests."""
    _told.append(tell)


class Server(uvicorn.Server):
    """Tells those who still send that they have to come to an end, rather than to wait for them and cut them off."""

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        for tell in _told:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(tell)
        super().handle_exit(sig, frame)


async def hung_up(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read whole."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` returns or raises; cancelled, and None, when the client hangs up."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(hung_up(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))
    return None if working.cancelled() else working.result()


async def in_thread(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """A thread cannot be cancelled: when we are, it is told to stop until it has."""
    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            stop()
            await asyncio.wait([working], timeout=STOP_S)
        working.exception()  # it was asked for
        raise
