"""Energy of a piece of work: measured where the machine has a meter, else estimated from CPU time; it always says which.

Knows which of the machine's meters to go by, and how to read slow ones without holding anybody up. A meter counts the
whole machine, or a whole part of it, while the work lasts; the estimate counts the work alone. Knows nothing of turns.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from rag.meters import POWER_SUPPLY, POWERCAP, Battery, Gpu, NvidiaSmi, Nvml, Rapl, Reading, SlowMeter, of_gpus
from rag.models import processor

log = logging.getLogger("smallfirst.energy")

FROM_CPU_TIME: Final = "estimated from CPU time"
FROM_COMPUTING_TIME: Final = "estimated from computing time"
LATE_S: Final = 5.0
"""Nothing is told of a meter that has been silent for so long."""


@dataclass(frozen=True)
class Energy:
    joules: float | None
    """None: nothing is known."""
    measured: bool
    """All of it; what is partly estimated is not."""
    source: str
    """For a person: "RAPL, package", "NVML", "nvidia-smi", "battery", "estimated from CPU time"; several are joined by
    " + ", and where nothing is known it is empty."""

    @property
    def sources(self) -> tuple[str, ...]:
        return sources(self.source)


UNKNOWN: Final = Energy(None, False, "")


def sources(joined: str) -> tuple[str, ...]:
    """What `Energy.source` names."""
    return tuple(filter(None, joined.split(" + ")))


def total(parts: Iterable[Energy]) -> Energy:
    """The sum of those that are known, measured if all of them are."""
    known = [part for part in parts if part.joules is not None]
    if not known:
        return UNKNOWN
    named = dict.fromkeys(source for part in known for source in part.sources)
    return Energy(sum(part.joules or 0 for part in known), all(part.measured for part in known), " + ".join(named))


def estimate(cpu_s: float, seconds: float, watts: float) -> Energy:
    """`watts` x CPU seconds / cores: this machine is taken to draw `watts` while all cores that we may use compute.

    Hyper-threads are no cores, so a program that uses them has more CPU seconds than that; it draws no more than `watts`.
    """
    return Energy(watts * min(cpu_s / _cores(), seconds), False, FROM_CPU_TIME)


@cache
def _cores() -> int:
    return processor.physical_cores()


class Meters:
    """The meters of one machine. They are looked for once, the slow ones by a thread of their own at the first metering.

    That thread lives as long as the program where there is a slow meter, ends at once where there is none, and reads only
    while something is metered.
    """

    def __init__(
        self,
        *,
        powercap: Path = POWERCAP,
        power_supply: Path = POWER_SUPPLY,
        gpus: Callable[[], SlowMeter | None] = of_gpus,
    ) -> None:
        self._powercap = powercap
        self._power_supply = power_supply
        self._gpus = gpus
        self._rapl: Rapl | None = None
        self._looked = False
        self._change = threading.Condition()
        self._reader: threading.Thread | None = None
        self._open: set[Metering] = set()
        self._none = False
        """There is no slow meter."""

    def start(self) -> "Metering":
        """Meter from now on. Whoever starts ends it with `stop`."""
        if not self._looked:
            self._rapl, self._looked = Rapl.find(self._powercap), True
        metering = Metering(self, self._rapl)
        if self._none:
            return metering
        with self._change:
            self._open.add(metering)
            if self._reader is None:
                self._reader = threading.Thread(target=self._read, name="read the meters", daemon=True)
                try:
                    self._reader.start()
                except RuntimeError as error:  # there are too many already
                    log.debug("Slow meters are not read: %s", error)
                    self._none = True
            self._change.notify()
        return metering

    def forget(self, metering: "Metering") -> None:
        with self._change:
            self._open.discard(metering)

    def _find(self) -> Sequence[SlowMeter]:
        found = (Battery.find(self._power_supply), self._gpus())
        return [meter for meter in found if meter is not None]

    def _read(self) -> None:
        meters = self._find()
        log.debug("Slow meters: %s", ", ".join(meter.source for meter in meters) or "none")
        if not meters:
            with self._change:
                self._none = True
                self._open.clear()
            return
        due = dict.fromkeys(meters, 0.0)
        while True:
            with self._change:
                if self._open:
                    self._change.wait(max(0.0, min(due.values()) - time.monotonic()))
                while not self._open:
                    self._change.wait()
                    due = dict.fromkeys(meters, 0.0)
                opened = tuple(self._open)
            for meter in meters:
                if time.monotonic() < due[meter]:
                    continue
                reading = _read(meter)
                at = time.monotonic()
                due[meter] = at + meter.every_s
                for metering in opened:
                    metering.take(meter.source, at, reading)


def _read(meter: SlowMeter) -> Reading | None:
    try:
        return meter.read()
    except Exception as error:  # a driver that was taken out, a battery, a program: they fail in ways of their own
        log.debug("%s cannot be read: %s", meter.source, error)
        return None


THIS_MACHINE: Final = Meters()


@dataclass(frozen=True)
class _Drawn:
    """Of one slow meter since the metering began, up to a reading."""

    joules: float
    at: float
    last: Reading

    @classmethod
    def first(cls, began: float, at: float, reading: Reading) -> "_Drawn":
        """What it shows first is taken to have been drawn since the beginning."""
        return cls((reading.watts or 0.0) * (at - began), at, reading)

    def then(self, at: float, reading: Reading) -> "_Drawn":
        early, late = self.last, reading
        if early.joules is not None and late.joules is not None:
            more = late.joules - early.joules
        else:
            more = ((early.watts or 0.0) + (late.watts or 0.0)) / 2 * (at - self.at)
        return _Drawn(self.joules + more, at, reading)

    def until(self, end: float) -> float | None:
        """What it showed last goes on; None if that was long ago, or if the meter has shown nothing."""
        if end - self.at > LATE_S:
            return None
        joules = self.joules + (self.last.watts or 0.0) * max(0.0, end - self.at)
        return joules if joules > 0 else None


class Metering:
    """What the machine's meters count from one moment to another."""

    def __init__(self, meters: Meters, rapl: Rapl | None) -> None:
        self.began = time.monotonic()
        self.ended: float | None = None
        self.gpus: deque[tuple[Gpu, ...]] = deque(maxlen=1000)
        """Readings that nobody has taken out yet, in their order."""
        self._meters = meters
        self._rapl = rapl
        self._package_uj: tuple[int, ...] = ()
        self._package_j = 0.0
        self._drawn: dict[str, _Drawn] = {}
        self._silent: set[str] = set()
        if rapl is not None:
            self._look_first(rapl)

    @property
    def seconds(self) -> float:
        """Since it began; up to its end."""
        return (self.ended or time.monotonic()) - self.began

    def look(self) -> None:
        """Read what is quick to read. Now and then, because its counters come round."""
        if self._rapl is None or self.ended is not None:
            return
        try:
            now_uj = self._rapl.read()
        except (OSError, ValueError):
            self._rapl = None
            return
        self._package_j += self._rapl.joules(self._package_uj, now_uj)
        self._package_uj = now_uj

    def stop(self) -> None:
        if self.ended is None:
            self.look()
            self.ended = time.monotonic()
            self._meters.forget(self)

    def take(self, source: str, at: float, reading: Reading | None) -> None:
        """A reading of a slow meter, from the thread that reads it. None: it tells nothing of this time any more."""
        if self.ended is not None:
            return
        if reading is None:
            self._silent.add(source)
            return
        if reading.gpus:
            self.gpus.append(reading.gpus)
        if reading.watts is None and reading.joules is None:
            self._silent.add(source)
            return
        before = self._drawn.get(source)
        self._drawn[source] = before.then(at, reading) if before else _Drawn.first(self.began, at, reading)

    def energy(self, cpu_s: float | None, watts: float) -> Energy:
        """So far, by the best that there is.

        RAPL with the GPUs' own meters; else the battery, which feeds all of them; else what the GPUs' meters show and an
        estimate of the rest, from `cpu_s` at so many `watts`. Without CPU seconds, or with 0 watts, no estimate.
        """
        gpus = self._slow(Nvml.source, NvidiaSmi.source)
        if self._rapl is not None and self._package_j > 0:
            return total((Energy(self._package_j, True, Rapl.source), gpus))
        battery = self._slow(Battery.source)
        if battery.joules is not None:
            return battery
        rest = estimate(cpu_s, self.seconds, watts) if cpu_s is not None and watts else UNKNOWN
        return total((gpus, rest))

    def _slow(self, *named: str) -> Energy:
        """What the first of these meters shows that there is."""
        end = self.ended or time.monotonic()
        for source in named:
            drawn = self._drawn.get(source)
            if drawn is not None and source not in self._silent and (joules := drawn.until(end)) is not None:
                return Energy(joules, True, source)
        return UNKNOWN

    def _look_first(self, rapl: Rapl) -> None:
        try:
            self._package_uj = rapl.read()
        except (OSError, ValueError):
            self._rapl = None
