"""Spare time: work that is done while nobody asks, gives way to whoever does, and is taken up again.

Knows an order of jobs and when it is quiet; nothing of what they do. Warming a model, trying what a server can do and
measuring what suits this machine are such jobs: useful, and never worth a moment of somebody's answer.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

log = logging.getLogger("smallfirst")

# How long nobody must have asked before a job that can wait is begun.
QUIET_S = 5.0
# A job that never gets its time is let go: the next start tries again.
MOST_ATTEMPTS = 20
LOOK_S = 0.1


@dataclass
class _Job:
    name: str
    work: Callable[[], Awaitable[None]]
    quiet_s: float
    attempts: int = 0


class SpareTime:
    """Jobs one after the other, in the order in which they came. Belongs to one event loop."""

    def __init__(self, busy: Callable[[], bool], quiet_s: float = QUIET_S) -> None:
        """`busy` says whether somebody's turn is under way."""
        self._busy = busy
        self._quiet_s = quiet_s
        self._jobs: deque[_Job] = deque()
        self._wanted = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._gave_way = False
        self._stirred_at = float("-inf")
        self._runner: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Jobs that are not done, with the one that is being done."""
        return len(self._jobs) + (self._running is not None and not self._running.done())

    def add(self, name: str, work: Callable[[], Awaitable[None]], *, urgent: bool = False) -> None:
        """Do this once; `work` may be cancelled at any moment and begun anew. An urgent job waits for no long quiet."""
        if any(job.name == name for job in self._jobs):
            return
        job = _Job(name, work, 0.0 if urgent else self._quiet_s)
        if urgent:
            self._jobs.appendleft(job)
        else:
            self._jobs.append(job)
        self._wanted.set()
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), name="spare time")

    def stir(self) -> None:
        """Somebody asks: what is being done stops now."""
        self._stirred_at = asyncio.get_running_loop().time()
        if self._running is not None and not self._running.done():
            self._gave_way = True
            self._running.cancel()

    async def close(self) -> None:
        """Nothing is begun any more, and what is being done has stopped."""
        for task in (self._runner, self._running):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            await self._quiet()
            job = self._jobs.popleft()
            self._gave_way = False
            self._running = asyncio.create_task(self._do(job), name=job.name)
            await asyncio.wait([self._running])
            if self._gave_way and self._running.cancelled():
                job.attempts += 1
                if job.attempts < MOST_ATTEMPTS:
                    self._jobs.appendleft(job)
            if not self._jobs:
                self._wanted.clear()

    async def _do(self, job: _Job) -> None:
        try:
            await job.work()
        except Exception as error:
            # Nobody waits for it, and the turn does without; but somebody may wonder.
            log.info("%s: %s", job.name, error)

    async def _quiet(self) -> None:
        """Wait until nobody has asked for a while. The first job may change meanwhile."""
        # Turns end in many places, none of which would announce it.
        while self._busy() or asyncio.get_running_loop().time() - self._stirred_at < self._jobs[0].quiet_s:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
