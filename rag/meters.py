"""The meters of power and energy that a machine may have: Rapl, Battery, Nvml, NvidiaSmi.

Each reads one of them, and says what that counts: always the whole of something (a processor's package, the GPUs, the
machine), so that what other programs draw at the same time is in it. `find` of each returns None where there is no such
meter, or where this user may not read it. Knows nothing of whose work is metered, nor from when to when.
"""

import importlib
import logging
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol

log = logging.getLogger("smallfirst.meters")

POWERCAP: Final = Path("/sys/class/powercap")
POWER_SUPPLY: Final = Path("/sys/class/power_supply")
ASK_S: Final = 5.0
"""How long nvidia-smi may take."""


@dataclass(frozen=True)
class Gpu:
    share: float | None
    """How much of the time it computed for whomever, of late, 0 to 1."""
    memory: Mapping[int, int | None]
    """Bytes of it by process; None where the driver names the process and not the bytes."""


@dataclass(frozen=True)
class Reading:
    """What a meter shows at one moment."""

    watts: float | None
    joules: float | None = None
    """A counter, where there is one: only the difference of two readings means anything."""
    gpus: tuple[Gpu, ...] = ()


class SlowMeter(Protocol):
    """A meter that may take long to read, up to seconds: never read where somebody waits."""

    @property
    def source(self) -> str:
        """Its name, for a person."""
        ...

    @property
    def every_s(self) -> float:
        """How often a new reading tells something new."""
        ...

    def read(self) -> Reading | None:
        """None while it tells nothing. What else goes wrong is raised, as whatever it is."""
        ...


class Rapl:
    """Energy counters of the processor's packages: cores, caches and what else is in them, but not the memory.

    Of Intel's processors, and of AMD's under the same name, on Linux. They count what every program draws, and what the
    processor draws at rest. Files of the kernel, read in microseconds; only root may, unless the system was told otherwise.
    """

    source: Final = "RAPL, package"

    def __init__(self, packages: Sequence[tuple[Path, int]]) -> None:
        """Counter and its range of each package, in microjoules."""
        self._packages = packages

    @classmethod
    def find(cls, root: Path = POWERCAP) -> "Rapl | None":
        packages = []
        try:
            for folder in sorted(root.glob("intel-rapl:*")):
                # Of two numbers the second is a part of the package, which the package counts already; the whole platform
                # has one number, too, and a name of its own.
                if re.fullmatch(r"intel-rapl:\d+", folder.name) and _text(folder / "name").startswith("package"):
                    packages.append((folder / "energy_uj", int(_text(folder / "max_energy_range_uj"))))
            found = cls(packages)
            found.read()
        except (OSError, ValueError):
            return None  # some of the packages would be told as all of them
        return found if packages else None

    def read(self) -> tuple[int, ...]:
        """Microjoules of each package. Raises OSError or ValueError."""
        return tuple(int(_text(counter)) for counter, _ in self._packages)

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Drawn by all packages between two readings, if no counter came round more than once: that takes many minutes."""
        ranges = (most for _, most in self._packages)
        drawn = (
            late - early + (most if late < early else 0)
            for early, late, most in zip(before, after, ranges, strict=True)
        )
        return sum(drawn) / 1e6


class Battery:
    """What leaves the batteries: the whole machine, its screen too. Linux; only while it runs on them.

    The firmware behind these files looks every few seconds at best, and takes milliseconds to answer.
    """

    source: Final = "battery"
    every_s: Final = 1.0

    def __init__(self, batteries: Sequence[Path]) -> None:
        self._batteries = batteries

    @classmethod
    def find(cls, root: Path = POWER_SUPPLY) -> "Battery | None":
        batteries = [folder for folder in sorted(root.glob("BAT*")) if (folder / "status").is_file()]
        return cls(batteries) if batteries else None

    def read(self) -> Reading | None:
        """Watts where they are shown, else a counter that rises as the charge falls."""
        states = [_text(battery / "status") for battery in self._batteries]
        if "Discharging" not in states or "Charging" in states:
            return None
        drained = [one for one, state in zip(self._batteries, states, strict=True) if state == "Discharging"]
        watts = [_discharge_w(battery) for battery in drained]
        if None not in watts:
            return Reading(watts=sum(each for each in watts if each is not None))
        # Of all of them: one battery takes over where another ends. In microwatt hours.
        return Reading(None, -3600e-6 * sum(int(_text(battery / "energy_now")) for battery in self._batteries))


def _discharge_w(battery: Path) -> float | None:
    """Some drivers show a current that leaves as negative, and some show 0 for what they don't know."""
    try:
        watts = abs(int(_text(battery / "power_now"))) / 1e6
    except (OSError, ValueError):
        try:
            watts = abs(int(_text(battery / "voltage_now")) * int(_text(battery / "current_now"))) / 1e12
        except (OSError, ValueError):
            return None
    return watts or None


class Nvml:
    """All of NVIDIA's GPUs, by the driver's own library: energy of the whole boards, use, and memory by process.

    Needs the package nvidia-ml-py (module `pynvml`). Energy counters are of GPUs since Volta; of older ones the power is
    shown. In a container the driver may name processes by numbers of the machine's, which nobody in it knows.
    """

    source: Final = "NVML"
    every_s: Final = 0.1

    def __init__(self, pynvml: ModuleType) -> None:
        """Raises NVMLError where there is no driver."""
        self._nvml: Any = pynvml
        self._nvml.nvmlInit()
        count = self._nvml.nvmlDeviceGetCount()
        self._gpus = [self._nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]

    @classmethod
    def find(cls) -> "Nvml | None":
        try:
            found = cls(importlib.import_module("pynvml"))
            return found if found._gpus else None
        except Exception as error:  # whatever somebody else's module of that name, or his driver, makes of it
            log.debug("No NVML: %s", error)
            return None

    def read(self) -> Reading:
        counted = [self._told(self._nvml.nvmlDeviceGetTotalEnergyConsumption, gpu) for gpu in self._gpus]  # mJ
        drawn = [self._told(self._nvml.nvmlDeviceGetPowerUsage, gpu) for gpu in self._gpus]  # mW
        return Reading(
            watts=None if None in drawn else sum(drawn) / 1000,
            joules=None if None in counted else sum(counted) / 1000,
            gpus=tuple(self._seen(gpu) for gpu in self._gpus),
        )

    def _seen(self, gpu: Any) -> Gpu:
        use = self._told(self._nvml.nvmlDeviceGetUtilizationRates, gpu)
        processes = self._told(self._nvml.nvmlDeviceGetComputeRunningProcesses, gpu) or ()
        return Gpu(
            share=None if use is None else use.gpu / 100,
            memory={process.pid: process.usedGpuMemory for process in processes},
        )

    def _told(self, ask: Callable[[Any], Any], gpu: Any) -> Any:
        """None for what this GPU, or its driver, does not tell."""
        try:
            return ask(gpu)
        except self._nvml.NVMLError:
            return None


class NvidiaSmi:
    """All of NVIDIA's GPUs, by the program that comes with the driver: their power, asked now and then."""

    source: Final = "nvidia-smi"
    every_s: Final = 1.0

    def __init__(self, program: str) -> None:
        self._command = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]

    @classmethod
    def find(cls, program: str | None = None) -> "NvidiaSmi | None":
        program = program or shutil.which("nvidia-smi")
        if program is None:
            return None
        found = cls(program)
        try:
            found.read()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            log.debug("No nvidia-smi: %s", error)
            return None
        return found

    def read(self) -> Reading:
        """Raises ValueError where a GPU does not tell its power."""
        done = subprocess.run(
            self._command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ASK_S, check=True,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )  # fmt: skip
        watts = [float(line) for line in done.stdout.splitlines() if line.strip()]
        if not watts:
            raise ValueError("it lists no GPU")
        return Reading(sum(watts))


def of_gpus() -> SlowMeter | None:
    """The better one that there is."""
    return Nvml.find() or NvidiaSmi.find()


def _text(file: Path) -> str:
    return file.read_text(encoding="ascii").strip()
