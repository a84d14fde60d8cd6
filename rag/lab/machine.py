"""What something was measured on. Knows no measurement."""

import platform
from typing import Any

import psutil

from rag.models import processor
from rag.models.accelerators import accelerators


def machine() -> dict[str, Any]:
    """The machine that this runs on, as far as speed depends on it."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor.name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "accelerators": list(accelerators()),
        "python": platform.python_version(),
    }
