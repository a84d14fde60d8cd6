"""What else than the processor could compute here: GPUs and NPUs, by name.

Knows what the system tells. Whether a model server uses one is for the server to say (`runs_on`).
"""

import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path

SYSFS = Path("/sys/class")
# PCI vendors of display and compute devices; others (a server's console, a virtual screen) compute nothing.
VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
NPUS = {"intel_vpu": "Intel NPU", "amdxdna": "AMD NPU", "rocket": "Rockchip NPU", "ethosu": "Arm Ethos NPU"}
"""Drivers of Linux' `accel` devices."""
ASK_S = 5.0


@cache
def accelerators() -> tuple[str, ...]:
    """`NVIDIA GeForce RTX 4070`, `AMD GPU`, `Intel NPU`, `Apple M2 GPU`; empty where there is none, or none is told."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        from rag.models import processor

        return (f"{processor.name()} GPU",)
    named = _nvidia()
    found = [name for name in _devices(SYSFS) if not (named and name.startswith("NVIDIA"))]
    return (*named, *found)


def _nvidia() -> tuple[str, ...]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()  # a driver without its card, or the other way round
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def _devices(sysfs: Path) -> list[str]:
    """As Linux lists them: graphics cards by their maker, NPUs by their driver."""
    found = []
    for card in sorted(sysfs.glob("drm/card[0-9]")):
        vendor = _text(card / "device" / "vendor")
        if vendor in VENDORS:
            found.append(f"{VENDORS[vendor]} GPU")
    for device in sorted(sysfs.glob("accel/accel*")):
        lines = _text(device / "device" / "uevent").splitlines()
        driver = next((line.partition("=")[2] for line in lines if line.startswith("DRIVER=")), "")
        found.append(NPUS.get(driver, f"{driver} NPU" if driver else "NPU"))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
