from pathlib import Path

import pytest

from rag.models import accelerators


def _file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_cards_are_named_by_their_maker_and_npus_by_their_driver(tmp_path: Path) -> None:
    _file(tmp_path / "drm" / "card0" / "device" / "vendor", "0x1002\n")
    _file(tmp_path / "drm" / "card1" / "device" / "vendor", "0x1234\n")  # a virtual screen
    _file(tmp_path / "accel" / "accel0" / "device" / "uevent", "DRIVER=amdxdna\nPCI_CLASS=118000\n")
    _file(tmp_path / "accel" / "accel1" / "device" / "uevent", "DRIVER=habanalabs\n")
    (tmp_path / "drm" / "card0-HDMI-A-1").mkdir()
    assert accelerators._devices(tmp_path) == ["AMD GPU", "AMD NPU", "habanalabs NPU"]


def test_nothing_is_named_where_nothing_is(tmp_path: Path) -> None:
    assert accelerators._devices(tmp_path) == []


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("echo NVIDIA A10; echo NVIDIA T4", ("NVIDIA A10", "NVIDIA T4")),
        ("echo no devices were found; exit 6", ()),
    ],
)
def test_nvidia_s_own_program_knows_the_names(
    script: str, names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert accelerators._nvidia() == names
