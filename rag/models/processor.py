"""This machine's processor: its name, its instructions, and how much of it this process may use.

Knows what the system tells. Measures nothing, and knows nothing of models.
"""

import hashlib
import math
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil

# Of the flags that Linux lists: those that compilers make use of. Others come and go with kernels.
_COMPUTE = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx", "asimd", "sve", "sme", "i8mm", "bf16", "dotprod")
CPUINFO = Path("/proc/cpuinfo")
CGROUP = Path("/sys/fs/cgroup")


@cache
def name() -> str:
    """As its maker calls it, as far as the system tells: `AMD EPYC`, `Apple M2`."""
    if sys.platform == "linux":
        told = _cpuinfo("model name")
    elif sys.platform == "darwin":
        told = _sysctl("machdep.cpu.brand_string")
    else:
        told = platform.processor()
    return told or platform.machine()


@cache
def instructions() -> frozenset[str]:
    """Sets of instructions for computing: `avx2`, `avx512_vnni`, `i8mm`. Empty where the system does not list them."""
    if sys.platform == "linux":
        flags = _cpuinfo("flags") or _cpuinfo("Features")
    elif sys.platform == "darwin":
        flags = f"{_sysctl('machdep.cpu.features')} {_sysctl('machdep.cpu.leaf7_features')}".lower()
    else:
        flags = ""
    return frozenset(flag for flag in flags.split() if flag.startswith(_COMPUTE))


def key() -> str:
    """Eight characters; a program compiled for a processor of this key runs on every processor of this key."""
    described = " ".join([platform.machine(), name(), *sorted(instructions())])
    return hashlib.sha256(described.encode()).hexdigest()[:8]


def logical_cores() -> int:
    """Those that this process may run on, hyper-threads counted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(cgroup: Path = CGROUP) -> float | None:
    """How many cores' worth of time a container is given (`docker run --cpus`), None: as much as there is."""
    try:
        limit, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:  # before version 2
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cores = int(limit) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max"
    return cores if cores > 0 else None


def machine_cores() -> int:
    """Physical cores of the whole machine, whoever may use them."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def physical_cores() -> int:
    """Of those this process may use: hyper-threads only slow matrix products down, and a container may allow fewer.

    Beyond its quota a container is stopped for the rest of each tenth of a second, and threads that wait for one another
    are then all stopped.
    """
    allowed = logical_cores()
    given = quota()
    return max(1, min(machine_cores(), allowed, math.floor(given) if given else allowed))


def _cpuinfo(wanted: str) -> str:
    try:
        with CPUINFO.open() as lines:
            for line in lines:
                field, _, value = line.partition(":")
                if field.strip() == wanted:
                    return value.strip()
    except OSError:
        pass
    return ""


def _sysctl(wanted: str) -> str:
    try:
        done = subprocess.run(["sysctl", "-n", wanted], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
