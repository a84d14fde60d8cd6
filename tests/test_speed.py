"""Single requests, timed: of the real SmolLM2, and of models that cannot be timed."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from rag.errors import ModelError, ModelSilent
from rag.lab import runtimes, speed
from rag.lab.runtimes import Running
from rag.lab.speed import Timed
from rag.models.backend import Backend
from rag.settings import Settings

from .scripted import Reply, ScriptedBackend
from .wire.servers import serving


@pytest.fixture
async def running(small_weights: Path) -> AsyncIterator[Running]:
    settings = Settings(_env_file=None, cache_dir=small_weights.parent)  # type: ignore[call-arg]
    (runner,) = await runtimes.named(["smollm2-135m"], settings)
    async with runner.open() as opened:
        yield opened


async def test_a_request_is_timed_and_no_cache_holds_its_prompt(running: Running) -> None:
    timed = await speed.ask(running.backend, speed.prompt(1, 20), 12)
    assert timed.output_tokens == 12
    assert timed.first_ms is not None
    assert timed.writing_ms is not None
    assert timed.first_ms + timed.writing_ms <= timed.total_ms
    assert 0 < sum(timed.gaps_ms) <= timed.writing_ms + 1e-6
    # Its server tells how much of a prompt it had read before: the template's first words, as often as it is asked.
    key = {"Authorization": f"Bearer {running.backend._key.reveal()}"}
    async with httpx2.AsyncClient(headers=key, timeout=60, trust_env=False) as client:
        for number in (2, 3, 7_000_000):
            body = {"messages": speed.prompt(number, 20), "max_tokens": 1}
            answer = (await client.post(f"{running.backend.base_url}/chat/completions", json=body)).json()
            assert answer["usage"]["prompt_tokens"] == timed.input_tokens, "its own beginning is as long"
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] <= 5


def test_no_two_prompts_begin_alike() -> None:
    beginnings = {speed.given(number, "x")[0]["content"] for number in range(50_000_000, 50_001_000)}
    assert len(beginnings) == 1000
    assert {len(beginning) for beginning in beginnings} == {8}, "all are as long, so all have as many tokens"


def test_speeds_are_tokens_over_the_time_that_they_took() -> None:
    timed = Timed(0, 500, 1000, (10, 20), input_tokens=100, output_tokens=48, writing_ms=470)
    assert timed.prefill_tokens_per_s == 200
    assert timed.decode_tokens_per_s == pytest.approx(100), "47 tokens followed the first"
    few = Timed(0, 500, 1000, (), input_tokens=None, output_tokens=7, writing_ms=470)
    assert (few.prefill_tokens_per_s, few.decode_tokens_per_s) == (None, None)
    whole = Timed(0, None, 1000, (), input_tokens=100, output_tokens=48, writing_ms=None)
    assert (whole.prefill_tokens_per_s, whole.decode_tokens_per_s) == (None, None)


async def test_an_answer_that_comes_whole_has_no_first_token() -> None:
    backend = ScriptedBackend("slm", ["one two three four five six seven eight nine ten", "Yes."])
    pieces = await speed.ask(backend, speed.given(1, "?"), 48)
    assert len(pieces.gaps_ms) == 9
    assert pieces.first_ms is not None
    short = await speed.ask(backend, speed.given(2, "?"), 48)
    assert short.first_ms is not None, "one piece is all there is"
    async with serving("openai") as address:
        plain = Backend("slm", "small-model", address.v1)
        try:
            speed.unstreamed(plain)
            timed = await speed.ask(plain, speed.given(3, "?"), 48, streamed=False)
        finally:
            await plain.close()
        assert not address.asked[-1].body["stream"]
    assert (timed.first_ms, timed.gaps_ms, timed.decode_tokens_per_s) == (None, (), None)
    assert timed.total_ms > 0


async def test_a_model_that_only_thinks_is_given_more_tokens() -> None:
    silent = Reply("", error=ModelSilent("It used up its tokens while it was thinking."))
    timed, written = await speed.warm_up(ScriptedBackend("slm", [silent, "At last."]), speed.given(1, "?"))
    assert written == speed.THINKING_TOKENS[0]
    assert timed.output_tokens
    with pytest.raises(ModelSilent):
        await speed.warm_up(ScriptedBackend("slm", [silent] * 3), speed.given(1, "?"))


async def test_a_model_that_counts_the_same_whatever_it_is_sent_has_no_prompts_of_a_length() -> None:
    words = "one two three four five six seven eight nine ten"
    with pytest.raises(ModelError, match="--prompt"):
        await speed.scale(ScriptedBackend("slm", [words, words]), (1, 2))
