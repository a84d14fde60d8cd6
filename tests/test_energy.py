"""How much energy a piece of work took, and how that is known: meters of real files, estimates, and what they add up to."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rag import energy
from rag.energy import Energy, Metering, estimate, total
from rag.meters import Battery, Gpu, NvidiaSmi, Nvml, Rapl, Reading

from .conftest import until
from .meters import battery, driver, meters_of, zone


def fixed(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.setattr(energy, "_cores", lambda: cores)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return driver(monkeypatch)


# --- RAPL ---


def test_the_packages_are_counted_and_nothing_twice(tmp_path: Path) -> None:
    root = tmp_path / "powercap"
    first, second = zone(root, "intel-rapl:0", "package-0", 7_000_000), zone(root, "intel-rapl:1", "package-1", 100)
    others = [zone(root, "intel-rapl:0:0", "core", 1), zone(root, "intel-rapl:2", "psys", 1)]
    others.append(zone(root, "intel-rapl-mmio:0", "package-0", 1))
    metering = meters_of(tmp_path).start()
    for counter, uj in ((first, 9_500_000), (second, 500_100), *((other, 90_000_000) for other in others)):
        counter.write_text(f"{uj}\n")
    metering.stop()
    assert metering.energy(1.0, 20) == Energy(pytest.approx(3.0), True, "RAPL, package")


def test_a_counter_that_came_round_has_not_run_backwards(tmp_path: Path) -> None:
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 9_000_000, most_uj=10_000_000)
    metering = meters_of(tmp_path).start()
    for uj in (1_000_000, 9_500_000, 500_000):
        counter.write_text(f"{uj}\n")
        metering.look()
    assert metering.energy(None, 20).joules == pytest.approx(2 + 8.5 + 1)


def test_after_its_end_nothing_is_counted(tmp_path: Path) -> None:
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    metering = meters_of(tmp_path).start()
    counter.write_text("2000000\n")
    metering.stop()
    counter.write_text("9000000\n")
    metering.look()
    assert metering.energy(None, 20).joules == 2


@pytest.mark.parametrize("spoilt", ["energy_uj", "max_energy_range_uj", "name"])
def test_a_package_that_cannot_be_read_leaves_no_meter(tmp_path: Path, spoilt: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    counter = zone(tmp_path, "intel-rapl:1", "package-1", 5)
    assert Rapl.find(tmp_path) is not None
    (counter.parent / spoilt).unlink()
    assert Rapl.find(tmp_path) is None, "half of the machine is not the machine"


def test_without_packages_there_is_no_meter(tmp_path: Path) -> None:
    assert Rapl.find(tmp_path / "nowhere") is None
    zone(tmp_path, "intel-rapl:0", "psys", 5)
    assert Rapl.find(tmp_path) is None


def test_a_counter_that_is_gone_leaves_an_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, cores=4)
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    metering = meters_of(tmp_path).start()
    counter.write_text("2000000\n")
    metering.look()
    counter.unlink()
    metering.stop()
    told = metering.energy(0.0, 20)
    assert (told.measured, told.source) == (False, "estimated from CPU time")


# --- The battery ---


@pytest.mark.parametrize(
    ("files", "watts"),
    [
        ({"power_now": 12_500_000}, 12.5),
        ({"power_now": -12_500_000}, 12.5),
        ({"voltage_now": 12_000_000, "current_now": 1_500_000}, 18),
        ({"voltage_now": 12_000_000, "current_now": -1_500_000}, 18),
    ],
)
def test_a_battery_tells_its_power(tmp_path: Path, files: dict[str, int], watts: float) -> None:
    battery(tmp_path, **files)
    found = Battery.find(tmp_path)
    assert found is not None
    assert found.read() == Reading(pytest.approx(watts))


def test_a_battery_that_tells_no_power_counts_by_its_charge(tmp_path: Path) -> None:
    folder = battery(tmp_path, power_now=0, energy_now=50_000_000)
    found = Battery.find(tmp_path)
    assert found is not None
    before = found.read()
    (folder / "energy_now").write_text("49990000\n")  # ten milliwatt hours less
    after = found.read()
    assert before is not None
    assert after is not None
    assert before.watts is None
    assert (after.joules or 0) - (before.joules or 0) == pytest.approx(36)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging", "Unknown"])
def test_a_battery_counts_only_while_the_machine_runs_on_it(tmp_path: Path, status: str) -> None:
    battery(tmp_path, status=status, power_now=9_000_000)
    found = Battery.find(tmp_path)
    assert found is not None
    assert found.read() is None


def test_of_two_batteries_those_that_are_drained_count(tmp_path: Path) -> None:
    battery(tmp_path, "BAT0", power_now=9_000_000)
    second = battery(tmp_path, "BAT1", status="Not charging", power_now=4_000_000)
    found = Battery.find(tmp_path)
    assert found is not None
    assert found.read() == Reading(9)
    (second / "status").write_text("Charging\n")
    assert found.read() is None


def test_a_mouse_is_no_battery_of_the_machine(tmp_path: Path) -> None:
    battery(tmp_path, "hidpp_battery_0", power_now=9_000_000)
    assert Battery.find(tmp_path) is None


async def test_a_slow_meter_is_read_while_something_is_metered(tmp_path: Path) -> None:
    folder = battery(tmp_path / "power_supply", power_now=9_000_000)
    meters = meters_of(tmp_path)
    metering = meters.start()
    await until(lambda: metering.energy(None, 0).source == "battery")
    assert metering.energy(5.0, 20).measured
    metering.stop()
    drawn = metering.energy(None, 0).joules
    assert drawn == pytest.approx(9 * metering.seconds)
    # The same thread reads for the next one.
    (folder / "power_now").write_text("18000000\n")
    again = meters.start()
    await until(lambda: again.energy(None, 0).measured)
    again.stop()
    assert again.energy(None, 0).joules == pytest.approx(18 * again.seconds)
    assert metering.energy(None, 0).joules == drawn


async def test_a_machine_without_slow_meters_is_not_looked_at_again(tmp_path: Path) -> None:
    looked: list[int] = []

    def find() -> None:
        looked.append(1)

    meters = meters_of(tmp_path, find)
    first = meters.start()
    await until(lambda: meters._none)
    first.stop()
    meters.start().stop()
    assert looked == [1]


# --- NVIDIA ---


def test_the_driver_tells_of_its_gpus(nvml: SimpleNamespace) -> None:
    nvml.count, nvml.processes = (
        2,
        [SimpleNamespace(pid=77, usedGpuMemory=2_000_000_000), SimpleNamespace(pid=78, usedGpuMemory=None)],
    )
    found = Nvml.find()
    assert found is not None
    gpu = Gpu(0.75, {77: 2_000_000_000, 78: None})
    assert found.read() == Reading(watts=80, joules=10, gpus=(gpu, gpu))


def test_what_a_gpu_does_not_tell_is_left_out(nvml: SimpleNamespace) -> None:
    found = Nvml.find()
    assert found is not None
    nvml.energy_mj = nvml.use = nvml.processes = None
    assert found.read() == Reading(watts=40, joules=None, gpus=(Gpu(None, {}),))


def test_without_a_gpu_or_a_driver_there_is_no_meter(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.count = 0
    assert Nvml.find() is None
    nvml.count = None  # whatever is asked fails
    assert Nvml.find() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert Nvml.find() is None


def program(tmp_path: Path, text: str) -> str:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_program_tells_the_power_of_all_gpus(tmp_path: Path) -> None:
    found = NvidiaSmi.find(program(tmp_path, '[ "$1" = --query-gpu=power.draw ] && printf "12.50\\n7.25\\n"'))
    assert found is not None
    assert found.read() == Reading(19.75)


@pytest.mark.parametrize("text", ["echo '[N/A]'", "echo 12; exit 9", "true", "echo 3.5; echo '[Not Supported]'"])
def test_a_program_that_does_not_know_is_no_meter(tmp_path: Path, text: str) -> None:
    assert NvidiaSmi.find(program(tmp_path, text)) is None
    assert NvidiaSmi.find(str(tmp_path / "not there")) is None


# --- What they add up to ---


def metered(tmp_path: Path, *readings: tuple[str, float, Reading | None], package_j: int = 0) -> Metering:
    """A metering with readings of slow meters so many seconds after its beginning."""
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0) if package_j else None
    metering = meters_of(tmp_path).start()
    for source, after_s, reading in readings:
        metering.take(source, metering.began + after_s, reading)
    if counter is not None:
        counter.write_text(f"{package_j * 1_000_000}\n")
        metering.look()
    return metering


def test_power_is_drawn_as_long_as_it_is_shown(tmp_path: Path) -> None:
    metering = metered(tmp_path, ("battery", 1, Reading(10)), ("battery", 3, Reading(20)))
    # 10 W until the first reading, 15 W on average until the second, which lies ahead.
    assert metering.energy(None, 0) == Energy(pytest.approx(10 + 30), True, "battery")


def test_a_counter_counts_from_the_first_reading_on(tmp_path: Path) -> None:
    metering = metered(tmp_path, ("NVML", 1, Reading(50, 1000)), ("NVML", 4, Reading(90, 1300)))
    assert metering.energy(None, 0) == Energy(pytest.approx(50 + 300), True, "NVML")


def test_the_processor_and_the_gpus_add_up(tmp_path: Path) -> None:
    metering = metered(tmp_path, ("NVML", 2, Reading(50)), ("battery", 2, Reading(90)), package_j=30)
    assert metering.energy(9.0, 20) == Energy(pytest.approx(30 + 100), True, "RAPL, package + NVML")


def test_the_battery_feeds_the_gpus_too(tmp_path: Path) -> None:
    metering = metered(tmp_path, ("NVML", 2, Reading(50)), ("battery", 2, Reading(90)))
    assert metering.energy(9.0, 20) == Energy(pytest.approx(180), True, "battery")


def test_what_is_partly_estimated_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, cores=2)
    metering = metered(tmp_path, ("nvidia-smi", 2, Reading(50)))
    monkeypatch.setattr(Metering, "seconds", 10.0)
    told = metering.energy(4.0, 20)
    assert told == Energy(pytest.approx(100 + 40), False, "nvidia-smi + estimated from CPU time")
    assert told.sources == ("nvidia-smi", "estimated from CPU time")
    assert metering.energy(None, 20) == metering.energy(4.0, 0) == Energy(pytest.approx(100), True, "nvidia-smi")


@pytest.mark.parametrize("spoilt", [None, Reading(None, None, (Gpu(0.5, {}),))])
def test_a_meter_that_falls_silent_has_measured_nothing(tmp_path: Path, spoilt: Reading | None) -> None:
    metering = metered(tmp_path, ("battery", 1, Reading(10)), ("battery", 2, spoilt), ("battery", 3, Reading(10)))
    assert metering.energy(None, 0) == Energy(None, False, "")


def test_a_counter_that_has_not_moved_has_measured_nothing(tmp_path: Path) -> None:
    metering = metered(tmp_path, ("battery", 1, Reading(None, -500)), ("battery", 3, Reading(None, -500)))
    assert metering.energy(None, 0).joules is None


def test_a_meter_that_was_last_read_long_ago_has_measured_nothing(tmp_path: Path) -> None:
    metering = metered(tmp_path, ("battery", -60, Reading(10)))
    assert metering.energy(None, 0).joules is None


def test_the_estimate_is_the_share_of_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, cores=4)
    assert estimate(6.0, 10.0, 20) == Energy(30, False, "estimated from CPU time")
    assert estimate(60.0, 10.0, 20).joules == 200, "hyper-threads draw no more than the cores that they share"


def test_a_sum_is_measured_if_all_of_it_was() -> None:
    rapl, cpu, nothing = (
        Energy(3, True, "RAPL, package"),
        Energy(4, False, "estimated from CPU time"),
        Energy(None, False, ""),
    )
    assert total([]) == total([nothing]) == nothing
    assert total([rapl, nothing, rapl]) == Energy(6, True, "RAPL, package")
    assert total([rapl, cpu]) == Energy(7, False, "RAPL, package + estimated from CPU time")
