"""From a name in settings to a real answer, and what is said on the way."""

import asyncio
import os
import re
import signal
from pathlib import Path

import pytest

from rag.corpus.library import Library
from rag.errors import ModelBroke, ModelUnreachable, UserError
from rag.models.backend import ChatBackend, Delta, Draft, Reading
from rag.models.legs import Legs
from rag.settings import Settings
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.session import Session

from .conftest import until


@pytest.fixture
def real(small_weights: Path) -> Settings:
    """SmolLM2 on both legs: the second stands in for the larger model."""
    return Settings(
        _env_file=None,
        cache_dir=small_weights.parent,
        slm_model="smollm2-135m",
        llm_model="smollm2-135m",
        context_tokens=2048,
    )  # type: ignore[call-arg]


async def test_smollm2_answers_a_question_from_a_real_document(library: Library, real: Settings) -> None:
    legs = Legs(real)
    try:
        question = "What is the default confidence threshold of Small First?"
        events = [
            event
            async for event in cascade.answer(question, session=Session(library), legs=legs, settings=real, mode="slm")
        ]
        last = events[-1]
        assert isinstance(last, cascade.Answered), last
        turn = last.turn
        assert {"0.19", "0.65"} & set(re.findall(r"0\.\d+", turn.answer))
        assert turn.citations
        assert turn.drafts[0].tokens, "the embedded server gives logprobs"
        assert turn.verdict is not None
        assert turn.verdict.signals is not None
        assert turn.verdict.signals.mean_logprob is not None
        assert turn.drafts[0].usage is not None
        assert turn.drafts[0].usage.input_tokens > 50
    finally:
        await legs.close()


async def test_how_far_a_long_prompt_is_read_is_told(real: Settings) -> None:
    legs = Legs(real)
    try:
        backend = await legs.slm.backend()
        text = " ".join(f"The number {number} is odd or even." for number in range(130))
        messages = [{"role": "user", "content": f"{text} Which is it?"}]
        pieces = [piece async for piece in backend.stream(messages, max_tokens=3, trace=Trace())]
        shares = [piece.share for piece in pieces if isinstance(piece, Reading)]
        assert len(shares) > 2
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert isinstance(pieces[len(shares)], Delta), "all of it is told before the first word"
    finally:
        await legs.close()


async def test_a_server_that_dies_fails_its_turn_clearly_and_the_next_one_works(real: Settings) -> None:
    legs = Legs(real)
    try:
        backend = await legs.slm.backend()
        pid = legs.slm.pid
        assert pid is not None
        messages = [{"role": "user", "content": "Tell a very long story about the sea."}]
        stream = backend.stream(messages, max_tokens=1000, trace=Trace())
        await anext(stream)
        os.kill(pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        with pytest.raises(ModelBroke, match="in the middle of its answer"):
            async for _ in stream:
                pass
        await until(lambda: legs.slm.pid not in (None, pid))
        again = await legs.slm.backend()
        pieces = [piece async for piece in again.stream(messages, max_tokens=5, trace=Trace())]
        assert isinstance(pieces[-1], Draft)
    finally:
        await legs.close()
    assert legs.slm.pid is None


async def test_both_embedded_models_take_turns(real: Settings) -> None:
    legs = Legs(real)
    try:
        small, large = await legs.slm.backend(), await legs.llm.backend()
        running = most = 0

        async def ask(backend: ChatBackend, text: str) -> None:
            nonlocal running, most
            began = False
            async for piece in backend.stream([{"role": "user", "content": text}], max_tokens=8, trace=Trace()):
                if isinstance(piece, Delta) and not began:
                    began, running = True, running + 1
                    most = max(most, running)
                if isinstance(piece, Draft):
                    running -= 1

        await asyncio.gather(*(ask(backend, f"Count to {n}.") for n in range(3) for backend in (small, large)))
        assert most == 1
    finally:
        await legs.close()


async def test_a_file_that_is_no_model_fails_with_a_reason_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    settings = Settings(_env_file=None, slm_model=str(tmp_path / "broken.gguf"), llm_base_url="http://127.0.0.1:9/v1")  # type: ignore[call-arg]
    legs = Legs(settings)
    try:
        with pytest.raises(ModelUnreachable, match="broken"):
            await legs.slm.backend()
        assert legs.slm.state.phase == "failed"
        assert legs.slm.pid is None
        assert legs.llm.state.phase == "remote"
    finally:
        await legs.close()


def test_names_that_lead_nowhere_say_what_to_do() -> None:
    with pytest.raises(UserError, match="smollm2-135m"):
        Legs(Settings(_env_file=None, slm_model="gpt-5"))  # type: ignore[call-arg]
    with pytest.raises(UserError, match="RAG_SLM_MODEL"):
        Legs(Settings(_env_file=None, slm_model="/nowhere/x.gguf"))  # type: ignore[call-arg]


async def test_weights_that_cannot_be_had_fail_the_leg_and_not_the_program(tmp_path: Path) -> None:
    settings = Settings(  # type: ignore[call-arg]
        _env_file=None,
        cache_dir=tmp_path,
        weights_source="hub",
        hub_url="http://127.0.0.1:9",
        slm_base_url="http://127.0.0.1:9/v1",
    )
    legs = Legs(settings)
    try:
        await legs.llm.start()
        assert legs.llm.state.phase == "failed"
        assert "127.0.0.1:9" in legs.llm.state.detail or "connect" in legs.llm.state.detail.lower()
        assert list(tmp_path.rglob("*.gguf")) == []
    finally:
        await legs.close()
