"""Tokens a second, of the real SmolLM2 and of servers that cannot be timed."""

import os
from pathlib import Path

import pytest

from rag.errors import RagError, UserError
from rag.lab import speed
from rag.models import weights
from rag.settings import Settings

from .wire.servers import serving


@pytest.fixture
def only_smollm2(small_weights: Path, settings: Settings) -> Settings:
    """A cache folder with no other model, so that no other is measured."""
    settings.cache_dir.mkdir(parents=True)
    for name in (small_weights.name, f"{small_weights.name}.verified"):
        os.link(small_weights.with_name(name), settings.cache_dir / name)
    assert weights.installed(weights.find("smollm2-135m"), settings.cache_dir)
    return settings


async def test_a_model_is_timed_on_the_runtime_that_is_here(only_smollm2: Settings) -> None:
    (timed,) = await speed.measure(only_smollm2, "embedded", 1)
    assert (timed.runtime, timed.model) == ("llama.cpp, as installed", "smollm2-135m")
    assert timed.input_tokens > 500
    # Reading is done many tokens at a time.
    assert timed.prefill_tokens_per_s > timed.decode_tokens_per_s > 0
    report = speed.report([timed], 1)
    assert report["metrics"]["smollm2-135m on llama.cpp, as installed, decode_tokens_per_s"] > 0
    assert report["machine"]["cores"] > 0


async def test_a_server_that_cannot_be_timed_is_said_so_and_does_not_count(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving("llama.cpp") as address:
        named = settings.model_copy(update={"slm_base_url": address.v1})
        with pytest.raises(RagError, match="Nothing could be measured"):
            await speed.measure(named, "servers", 1)
    assert "too few to time" in " ".join(capfd.readouterr().err.split())


async def test_where_there_is_nothing_to_measure_that_is_told(settings: Settings) -> None:
    with pytest.raises(UserError, match="nothing to measure for native"):
        await speed.measure(settings, "native", 1)
    with pytest.raises(UserError, match="--rounds is 0"):
        await speed.measure(settings, "all", 0)
