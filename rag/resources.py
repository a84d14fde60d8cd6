"""What a piece of work uses of this machine while it lasts: CPU time, memory, GPU, energy. Used, Sampler.

Knows processes by their numbers, and looks at them now and then on the event loop of whoever works; nothing is started for
it but a timer. A process that is gone costs its figures from then on, and never the work. CPU time is the system's count,
in hundredths of a second on Linux; what takes less shows as nothing.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Any

import psutil

from rag.energy import THIS_MACHINE, Energy, Meters, total
from rag.meters import Gpu

FIRST_S = 0.02
"""When a process that was never seen before is looked at again: by then the request is sent."""
CHILDREN_EVERY_S = 2.0


@dataclass(frozen=True)
class Used:
    """By one process and its children, or by a whole piece of work. None: not known."""

    cpu_s: float | None
    """Seconds of one core, in user and system mode."""
    peak_memory_mb: float | None
    """Resident, 10^6 bytes: the most that was seen at one look. What two of the processes share counts twice."""
    gpu_memory_mb: float | None
    """10^6 bytes, the most that was seen. None without NVML, as the next."""
    gpu_share: float | None
    """Mean utilisation, 0 to 1, of the busiest GPU that they compute on, whoever else does."""
    energy: Energy
    """Of the whole machine where it was measured, so that of two processes looked at together each has all of it."""
    seconds: float = 0.0
    """How long was looked."""

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.figures(),
            "energy_j": None if self.energy.joules is None else round(self.energy.joules, 3),
            "energy_measured": self.energy.measured,
            "energy_source": self.energy.source,
        }

    def figures(self) -> dict[str, float | None]:
        """All but the energy."""
        return {
            "cpu_s": _rounded(self.cpu_s, 3),
            "peak_memory_mb": _rounded(self.peak_memory_mb, 1),
            "gpu_memory_mb": _rounded(self.gpu_memory_mb, 1),
            "gpu_share": _rounded(self.gpu_share, 3),
        }


def together(parts: Iterable[Used]) -> Used:
    """Pieces of work that were done one after another, as one."""
    all_of_them = list(parts)
    shared = [(one.gpu_share, one.seconds) for one in all_of_them if one.gpu_share is not None]
    shared_s = sum(seconds for _, seconds in shared)
    cpu_s = [one.cpu_s for one in all_of_them if one.cpu_s is not None]
    return Used(
        cpu_s=sum(cpu_s) if cpu_s else None,
        peak_memory_mb=_most(one.peak_memory_mb for one in all_of_them),
        gpu_memory_mb=_most(one.gpu_memory_mb for one in all_of_them),
        gpu_share=sum(share * seconds for share, seconds in shared) / shared_s if shared_s else None,
        energy=total(one.energy for one in all_of_them),
        seconds=sum(one.seconds for one in all_of_them),
    )


def cpu_s(pid: int) -> float | None:
    """CPU seconds of a process and its children until now; None if it is gone. Takes milliseconds, to find the children."""
    family = _family(pid)
    if family is None:
        return None
    family.find()
    seconds = [member for member in map(_cpu_s, family.members) if member is not None]
    return sum(seconds) if seconds else None


class Sampler:
    """Looks at processes while its body runs.

        async with Sampler({"slm": lambda: leg.pid}, watts=settings.watts) as sampler:
            ...
        sampler.used("slm")

    The numbers are asked for again at each look, for a server that is restarted has another; None is looked over. Children
    are looked for every two seconds, in a thread, so one that lives shorter may not be seen.
    """

    def __init__(
        self,
        pids: Mapping[str, Callable[[], int | None]],
        *,
        watts: float,
        every_s: float = 0.25,
        meters: Meters = THIS_MACHINE,
    ) -> None:
        """`watts` is for the estimate of energy (`rag.energy.estimate`); 0: none."""
        self._pids = pids
        self._watts = watts
        self._every_s = every_s
        self._meters = meters
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Sampler":
        self._loop = asyncio.get_running_loop()
        self._metering = self._meters.start()
        self._begin()
        unknown = any(seen.family is not None and not seen.family.searched for seen in self._seen.values())
        self._timer = self._loop.call_later(min(FIRST_S, self._every_s) if unknown else self._every_s, self._tick)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._metering.stop()
        self._look()

    def restart(self) -> None:
        """What was used until now was not for this work: count from here."""
        self._metering.stop()
        self._metering = self._meters.start()
        self._begin()

    def used(self, name: str) -> Used:
        """Until now, or by the whole body once it has ended. `name` is a key of `pids`."""
        if self._timer is not None:
            self._metering.look()
            self._look()
        seen = self._seen[name]
        cpu_s = seen.cpu_s
        return Used(
            cpu_s=cpu_s,
            peak_memory_mb=None if seen.peak_bytes is None else seen.peak_bytes / 1e6,
            gpu_memory_mb=None if seen.gpu_bytes is None else seen.gpu_bytes / 1e6,
            gpu_share=sum(seen.gpu_shares) / len(seen.gpu_shares) if seen.gpu_shares else None,
            energy=self._metering.energy(cpu_s, self._watts),
            seconds=self._metering.seconds,
        )

    def _begin(self) -> None:
        self._seen = {name: _Seen() for name in self._pids}
        self._look()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._every_s, self._tick)
        self._metering.look()
        self._look()
        now = time.monotonic()
        for seen in self._seen.values():
            if seen.family is not None and seen.family.take_search(now):
                self._loop.run_in_executor(None, seen.family.find)

    def _look(self) -> None:
        for name, pid in self._pids.items():
            self._seen[name].look(pid())
        while self._metering.gpus:
            gpus = self._metering.gpus.popleft()
            for seen in self._seen.values():
                seen.take(gpus)


class _Family:
    """A process and its children."""

    def __init__(self, process: psutil.Process) -> None:
        self.members = {process: -math.inf}
        """Each with the last moment at which it was surely not there yet."""
        self.searched = False
        self._process = process
        self._next_search = 0.0
        self._last_search = -math.inf

    def take_search(self, now: float) -> bool:
        """Is it time to look for children? Who is told so looks."""
        if now < self._next_search:
            return False
        self._next_search = now + CHILDREN_EVERY_S
        return True

    def find(self) -> None:
        """Every process of the machine is looked at for that, so not where somebody waits."""
        began = time.monotonic()
        found = [self._process]
        with suppress(psutil.Error):  # it is gone, or nobody may look
            found += self._process.children(recursive=True)
        self.members = {process: self.members.get(process, self._last_search) for process in found}
        self._last_search, self.searched = began, True


@lru_cache(maxsize=32)
def _known(pid: int, created: float) -> _Family:
    """The same one as long as it lives, so that its children need not be looked for in each turn."""
    return _Family(psutil.Process(pid))


def _family(pid: int) -> _Family | None:
    try:
        return _known(pid, psutil.Process(pid).create_time())
    except psutil.Error:
        return None


class _Seen:
    """What was seen of one name."""

    def __init__(self) -> None:
        self.family: _Family | None = None
        self.peak_bytes: int | None = None
        self.gpu_bytes: int | None = None
        self.gpu_shares: list[float] = []
        self._pid: int | None = None
        self._began = time.monotonic()
        self._first: dict[psutil.Process, float] = {}
        self._last: dict[psutil.Process, float] = {}

    @property
    def cpu_s(self) -> float | None:
        if not self._last:
            return None
        return sum(last - self._first[process] for process, last in self._last.items())

    def look(self, pid: int | None) -> None:
        if pid != self._pid:
            self._pid, self.family = pid, None if pid is None else _family(pid)
        if self.family is None:
            return
        resident = 0
        for process, absent in self.family.members.items():
            cpu_s = _cpu_s(process)
            if cpu_s is None:
                continue
            if process not in self._first:
                # What it used before this work began is not this work's, nor is what it may have.
                self._first[process] = 0.0 if absent >= self._began else cpu_s
            self._last[process] = cpu_s
            resident += _resident(process)
        if resident:
            self.peak_bytes = max(resident, self.peak_bytes or 0)

    def take(self, gpus: tuple[Gpu, ...]) -> None:
        if self.family is None:
            return
        pids = {process.pid for process in self.family.members}
        theirs = [gpu for gpu in gpus if not pids.isdisjoint(gpu.memory)]
        taken = [size for gpu in theirs for pid, size in gpu.memory.items() if pid in pids and size is not None]
        if taken:
            self.gpu_bytes = max(sum(taken), self.gpu_bytes or 0)
        shares = [gpu.share for gpu in theirs if gpu.share is not None]
        if shares:
            self.gpu_shares.append(max(shares))


def _cpu_s(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    return float(times.user + times.system)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
