"""Meters that a machine may have: the kernel's, of real files in a folder, and NVIDIA's, by a stand-in.

No machine of ours has an NVIDIA GPU, so `pynvml` is doubled, with the names and shapes of the real module's functions.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rag.energy import Meters


def zone(root: Path, name: str, called: str, energy_uj: int, most_uj: int = 1_000_000_000) -> Path:
    """One of the kernel's power zones; returns its counter."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{called}\n")
    (folder / "max_energy_range_uj").write_text(f"{most_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def battery(root: Path, name: str = "BAT0", **files: str | int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for file, value in ({"status": "Discharging"} | files).items():
        (folder / file).write_text(f"{value}\n")
    return folder


def no_gpus() -> None:
    return None


def meters_of(tmp_path: Path, gpus: Callable[[], Any] = no_gpus) -> Meters:
    return Meters(powercap=tmp_path / "powercap", power_supply=tmp_path / "power_supply", gpus=gpus)


def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What one GPU tells; None: it does not support the question."""
    told = SimpleNamespace(
        count=1, energy_mj=5_000, power_mw=40_000, use=SimpleNamespace(gpu=75, memory=10), processes=[]
    )
    module: Any = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def answers(name: str) -> Callable[..., Any]:
        def answer(*handle: object) -> Any:
            if getattr(told, name) is None:
                raise NVMLError("Not Supported")
            return getattr(told, name)

        return answer

    module.NVMLError = NVMLError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = answers("count")
    module.nvmlDeviceGetHandleByIndex = lambda index: f"handle {index}"
    module.nvmlDeviceGetTotalEnergyConsumption = answers("energy_mj")
    module.nvmlDeviceGetPowerUsage = answers("power_mw")
    module.nvmlDeviceGetUtilizationRates = answers("use")
    module.nvmlDeviceGetComputeRunningProcesses = answers("processes")
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return told
