"""What the system tells of the processor, and what a container allows of it."""

import os
from pathlib import Path

import psutil
import pytest

from rag.models import processor


def test_processor_has_a_name_and_a_key_that_stays() -> None:
    assert processor.name()
    assert len(processor.key()) == 8
    assert processor.key() == processor.key()


def test_physical_cores_are_within_what_is_allowed() -> None:
    assert 1 <= processor.physical_cores() <= processor.logical_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can be forbidden on Linux only")
def test_forbidden_cores_are_not_counted() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert (processor.logical_cores(), processor.physical_cores()) == (1, 1)
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not psutil.LINUX, reason="control groups are Linux's")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_share_of_a_container_is_read(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert processor.quota(tmp_path) == cores
