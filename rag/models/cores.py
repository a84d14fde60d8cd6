"""The turn-taking of models that share this machine's cores.

Knows who computes and who waits. Knows nothing of models, servers or questions.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class _Waiter:
    granted: asyncio.Future[None]
    on_wait: Callable[[int], None] | None


class Cores:
    """One model computes at a time: two at once on the same cores write fewer tokens together than one alone.

    First come, first served. Belongs to one event loop.
    """

    def __init__(self) -> None:
        self._held = False
        self._queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """How many wait; the one that computes is not among them."""
        return len(self._queue)

    @asynccontextmanager
    async def claim(self, on_wait: Callable[[int], None] | None = None) -> AsyncIterator[None]:
        """Hold the cores for the body.

        `on_wait(ahead)` is called when there is a wait, and whenever the number ahead (the one that computes included)
        changes; not with 0: then the body runs. What it raises ends the claim that it belongs to.
        """
        if self._held:
            await self._wait(on_wait)
        self._held = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, on_wait: Callable[[int], None] | None) -> None:
        waiter = _Waiter(asyncio.get_running_loop().create_future(), on_wait)
        self._queue.append(waiter)
        try:
            if on_wait is not None:
                on_wait(len(self._queue))
            await waiter.granted
        except BaseException:
            if waiter in self._queue:
                behind = self._queue.index(waiter)
                self._queue.remove(waiter)
                self._tell(behind)
            elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                # Granted and cancelled in the same breath: the cores are ours, and nobody else would pass them on.
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The cores stay held when they go to the next in the queue, so that nobody can slip in between."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.granted.done():  # who was cancelled stands in the queue until its task runs again
                waiter.granted.set_result(None)
                self._tell(0)
                return
        self._held = False

    def _tell(self, first: int) -> None:
        """Everybody from that place on has one fewer ahead."""
        for ahead, waiter in enumerate(list(self._queue)[first:], first + 1):
            try:
                if waiter.on_wait is not None:
                    waiter.on_wait(ahead)
            except Exception as error:
                # Its own claim fails, not that of the one who happens to leave.
                self._queue.remove(waiter)
                if not waiter.granted.done():
                    waiter.granted.set_exception(error)
