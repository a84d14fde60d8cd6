"""What real processes use while they are looked at: CPU seconds, memory, and a GPU's by a stand-in of the driver."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rag import energy, resources
from rag.energy import Energy, Meters
from rag.resources import Sampler, Used, together

from .conftest import until
from .meters import driver, meters_of, zone

# Does what each line asks for, and answers with the CPU seconds that it has used.
WORKER = """
import os, subprocess, sys, time
held = None
for line in sys.stdin:
    task, number = line.split()
    if task == "hold":
        held = os.urandom(int(number) * 1_000_000)
    elif task == "burn":
        until = time.process_time() + float(number)
        while time.process_time() < until:
            pass
    elif task == "bear":
        child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[1]], stdin=subprocess.PIPE, text=True,
                                 stdout=subprocess.PIPE)
    elif task == "tell":
        child.stdin.write(f"burn {number}\\n")
        child.stdin.flush()
        child.stdout.readline()
    print(time.process_time(), flush=True)
"""
SHORTLY_S = 0.01


class Worker:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid

    def do(self, task: str, number: float = 0) -> float:
        """Returns the CPU seconds that it has used until now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{task} {number}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    async def does(self, task: str, number: float = 0) -> float:
        return await asyncio.to_thread(self.do, task, number)

    def end(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    one.do("burn", 0.05)  # it has begun, and has a past
    yield one
    one.end()


@pytest.fixture
def meters(tmp_path: Path) -> Meters:
    """Of a machine without any."""
    return meters_of(tmp_path)


def counted(pid: int) -> tuple[Callable[[], int], list[int]]:
    """A way to ask for a number, and how often it was asked."""
    asked: list[int] = []

    def ask() -> int:
        asked.append(pid)
        return pid

    return ask, asked


async def test_the_seconds_that_a_process_computes_are_counted_and_not_those_before(
    worker: Worker, meters: Meters
) -> None:
    before_s = worker.do("burn", 0.1)
    async with Sampler({"model": lambda: worker.pid}, watts=0, meters=meters) as sampler:
        after_s = await worker.does("burn", 0.3)
        assert sampler.used("model").cpu_s == pytest.approx(after_s - before_s, abs=0.05)
    told = sampler.used("model")
    await worker.does("burn", 0.2)
    assert sampler.used("model") == told, "afterwards nothing is counted"
    assert told.cpu_s == pytest.approx(after_s - before_s, abs=0.05)


async def test_the_most_memory_that_was_seen_is_told_though_it_was_given_back(worker: Worker, meters: Meters) -> None:
    async with Sampler({"model": lambda: worker.pid}, watts=0, every_s=SHORTLY_S, meters=meters) as sampler:
        before_mb = sampler.used("model").peak_memory_mb
        assert before_mb is not None
        await worker.does("hold", 60)
        await until(lambda: (sampler.used("model").peak_memory_mb or 0) > before_mb + 55)
        await worker.does("hold", 0)
    peak_mb = sampler.used("model").peak_memory_mb
    assert peak_mb is not None
    assert before_mb + 55 < peak_mb < before_mb + 120


async def test_children_count_and_those_that_are_born_meanwhile_from_their_birth(
    worker: Worker, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CHILDREN_EVERY_S", SHORTLY_S)
    # An older child: what it used before is not counted.
    worker.do("bear")
    worker.do("tell", 0.3)
    async with Sampler({"model": lambda: worker.pid}, watts=0, every_s=SHORTLY_S, meters=meters) as sampler:
        await until(lambda: resources._family(worker.pid).searched)  # type: ignore[union-attr]
        await worker.does("tell", 0.1)
        first_s = sampler.used("model").cpu_s or 0
        assert 0.05 < first_s < 0.25
        await worker.does("bear")
        await worker.does("tell", 0.2)
        # Its start is its own work, too.
        await until(lambda: (sampler.used("model").cpu_s or 0) >= first_s + 0.2)
    told = resources.cpu_s(worker.pid)
    assert told is not None
    assert told > 0.6, "with all that it and its children ever used"


async def test_a_process_that_dies_costs_its_figures_from_then_on(worker: Worker, meters: Meters) -> None:
    async with Sampler({"model": lambda: worker.pid}, watts=0, every_s=SHORTLY_S, meters=meters) as sampler:
        await worker.does("burn", 0.2)
        before_s = sampler.used("model").cpu_s or 0
        worker.end()
        assert sampler.used("model").cpu_s == pytest.approx(before_s, abs=0.02)
    assert before_s >= 0.15
    assert (sampler.used("model").peak_memory_mb or 0) > 1
    assert resources.cpu_s(worker.pid) is None


async def test_what_is_not_there_is_not_known(worker: Worker, meters: Meters) -> None:
    worker.end()
    async with Sampler({"gone": lambda: worker.pid, "none": lambda: None}, watts=20, meters=meters) as sampler:
        pass
    for name in ("gone", "none"):
        told = sampler.used(name)
        assert told == Used(None, None, None, None, Energy(None, False, ""), told.seconds)


async def test_a_server_that_comes_back_has_another_number(worker: Worker, meters: Meters) -> None:
    other = Worker()
    try:
        pid = worker.pid
        async with Sampler({"model": lambda: pid}, watts=0, meters=meters) as sampler:
            await worker.does("burn", 0.15)
            sampler.used("model")
            worker.end()
            pid = other.pid
            sampler.used("model")
            await other.does("burn", 0.15)
        assert (sampler.used("model").cpu_s or 0) >= 0.25
    finally:
        other.end()


async def test_what_was_used_before_a_restart_does_not_count(worker: Worker, meters: Meters) -> None:
    async with Sampler({"model": lambda: worker.pid}, watts=0, meters=meters) as sampler:
        await worker.does("burn", 0.3)
        sampler.restart()
        await worker.does("burn", 0.1)
    assert 0.05 < (sampler.used("model").cpu_s or 0) < 0.25


@pytest.mark.parametrize("ending", ["end", "error", "cancelled"])
async def test_after_the_body_nobody_looks(meters: Meters, ending: str) -> None:
    ask, asked = counted(os.getpid())

    async def body() -> None:
        async with Sampler({"model": ask}, watts=0, every_s=0.001, meters=meters):
            await until(lambda: len(asked) > 3)
            if ending == "error":
                raise ZeroDivisionError
            if ending == "cancelled":
                await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await until(lambda: len(asked) > 3)
    if ending == "cancelled":
        task.cancel()
    await asyncio.wait([task])
    looks = len(asked)
    other, others = counted(os.getpid())
    async with Sampler({"model": other}, watts=0, every_s=0.001, meters=meters):
        await until(lambda: len(others) > 10)
    assert len(asked) == looks


async def test_energy_is_estimated_from_cpu_time(
    worker: Worker, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_cores", lambda: 2)
    async with Sampler({"model": lambda: worker.pid}, watts=30, meters=meters) as sampler:
        await worker.does("burn", 0.2)
    told = sampler.used("model")
    assert told.cpu_s
    assert told.energy == Energy(pytest.approx(30 * told.cpu_s / 2), False, "estimated from CPU time")
    assert told.to_dict() == {
        "cpu_s": round(told.cpu_s, 3),
        "peak_memory_mb": round(told.peak_memory_mb or 0, 1),
        "gpu_memory_mb": None,
        "gpu_share": None,
        "energy_j": round(told.energy.joules or 0, 3),
        "energy_measured": False,
        "energy_source": "estimated from CPU time",
    }


async def test_energy_is_measured_where_there_is_a_meter(tmp_path: Path) -> None:
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 1_000_000)
    async with Sampler({"model": lambda: None}, watts=30, meters=meters_of(tmp_path)) as sampler:
        counter.write_text("5000000\n")
        sampler.restart()
        counter.write_text("7500000\n")
    assert sampler.used("model").energy == Energy(2.5, True, "RAPL, package")


async def test_the_gpus_that_a_process_computes_on_are_told(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = driver(monkeypatch)
    nvml.processes = [
        SimpleNamespace(pid=worker.pid, usedGpuMemory=1_500_000_000),
        SimpleNamespace(pid=1, usedGpuMemory=9),
    ]
    names = {"model": lambda: worker.pid, "other": os.getpid}
    meters = Meters(powercap=tmp_path, power_supply=tmp_path)
    async with Sampler(names, watts=0, every_s=SHORTLY_S, meters=meters) as sampler:
        await until(lambda: sampler.used("model").gpu_share is not None)
    told = sampler.used("model")
    assert (told.gpu_memory_mb, told.gpu_share) == (1500, 0.75)
    assert (told.energy.measured, told.energy.source) == (True, "NVML")
    other = sampler.used("other")
    assert (other.gpu_memory_mb, other.gpu_share) == (None, None), "its share is somebody else's"


def test_pieces_of_work_are_one_work() -> None:
    first = Used(1.5, 200, None, 0.5, Energy(3, True, "RAPL, package"), 1)
    second = Used(None, 300, 80, 0.9, Energy(None, False, ""), 3)
    assert together([first, second]) == Used(1.5, 300, 80, pytest.approx(0.8), Energy(3, True, "RAPL, package"), 4)
    nothing = Used(None, None, None, None, Energy(None, False, ""))
    assert together([]) == nothing
    assert together([nothing, nothing]) == nothing


async def test_a_turn_does_not_pay_for_what_is_slow(
    worker: Worker, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Children are looked for once the request is on its way, and no thread is started for one turn."""
    searched: list[int] = []
    async with Sampler({"model": lambda: worker.pid}, watts=0, every_s=SHORTLY_S, meters=meters):
        await until(lambda: resources._family(worker.pid).searched)  # type: ignore[union-attr]
    await until(lambda: meters._none)
    monkeypatch.setattr(resources._Family, "find", lambda self: searched.append(1))
    threads = set(threading.enumerate())
    for _ in range(20):
        async with Sampler({"model": lambda: worker.pid}, watts=0, meters=meters) as sampler:
            sampler.restart()
    assert searched == []
    assert set(threading.enumerate()) <= threads
