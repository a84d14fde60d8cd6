"""From a name in settings to a real answer, and what is said on the way."""

import asyncio
import os
import re
import signal
from pathlib import Path

import httpx2
import pytest

from rag.corpus.library import Library
from rag.errors import ModelBroke, ModelError, ModelUnreachable, UserError
from rag.models import discovery
from rag.models.backend import ChatBackend, Delta, Draft, Reading
from rag.models.legs import Legs
from rag.settings import Mode, Settings
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.session import Session

from .conftest import until
from .wire.servers import Reply, serving, wire


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


# --- on servers that are there already -------------------------------------------------------------------------------


def hosted(cache: Path, **named: object) -> Settings:
    return Settings(_env_file=None, cache_dir=cache, probe=False, **named)  # type: ignore[arg-type, call-arg]


async def ask(legs: Legs, library: Library, settings: Settings, mode: Mode = "auto") -> cascade.Turn:
    question = "What is the default confidence threshold of Small First?"
    events = [
        event
        async for event in cascade.answer(question, session=Session(library), legs=legs, settings=settings, mode=mode)
    ]
    assert isinstance(events[-1], cascade.Answered), events[-1]
    return events[-1].turn


async def test_a_model_is_asked_by_the_id_that_its_server_knows(library: Library, tmp_path: Path) -> None:
    async with serving("foundry-cli") as address:
        settings = hosted(tmp_path, slm_base_url=address.v1, slm_model="phi-4-mini", llm_base_url="http://127.0.0.1:9")
        legs = Legs(settings)
        try:
            turn = await ask(legs, library, settings, "slm")
        finally:
            await legs.close()
        (draft,) = turn.drafts
        assert draft.model.lower().startswith("phi-4-mini-instruct")
        assert legs.slm.model == draft.model
        assert draft.runs_on.startswith("Foundry Local, ")
        assert turn.to_dict()["drafts"][0]["runs_on"] == draft.runs_on
        posted = [asked.body for asked in address.asked if asked.method == "POST"]
        assert [body["model"] for body in posted] == [draft.model]


async def test_a_name_that_the_server_does_not_have_is_told_with_those_that_it_has(tmp_path: Path) -> None:
    async with serving("ollama") as address:
        legs = Legs(hosted(tmp_path, slm_base_url=address.v1, slm_model="phi-9", llm_base_url="http://127.0.0.1:9"))
        try:
            with pytest.raises(ModelError, match="phi-9") as caught:
                await legs.slm.backend()
            has = (await discovery.identify(address.v1, found_by="the test")).models
            assert len(has) > 1
            assert all(one.id in str(caught.value) for one in has)
        finally:
            await legs.close()


async def test_a_server_that_dies_is_stood_in_for_at_once_and_used_again_when_it_is_back(
    library: Library, tmp_path: Path
) -> None:
    async with serving("openai") as large:
        async with serving("llama.cpp") as small:
            named = wire("openai")["gets"]["/v1/models"]["body"]["data"][0]["id"]
            settings = hosted(
                tmp_path, slm_base_url=small.v1, llm_base_url=large.v1, llm_model=named, connect_timeout_s=60
            )
            legs = Legs(settings)
            first = await ask(legs, library, settings, "slm")
            assert first.drafts[0].leg == "slm"
            port = small.port
        try:
            turn = await ask(legs, library, settings, "slm")
            assert turn.drafts[-1].leg == "llm"
            assert f"127.0.0.1:{port}" in turn.notes[0]
            assert legs.slm.state.phase == "failed"
            noticed = turn.trace.find("escalate")
            assert noticed is not None
            assert noticed.start_ms < 1000 * settings.connect_timeout_s, "a server that is gone is not waited for"
            async with serving("llama.cpp", port=port):
                back = await ask(legs, library, settings, "slm")
                assert [draft.leg for draft in back.drafts] == ["slm"]
                assert back.notes == first.notes
        finally:
            await legs.close()


async def test_a_server_that_dies_shows_and_so_does_its_return_without_any_question(tmp_path: Path) -> None:
    async with serving("llama.cpp") as small:
        legs = Legs(hosted(tmp_path, slm_base_url=small.v1, llm_base_url=small.v1))
        await legs.start(pull_llm=False)
        assert legs.slm.state.phase == "remote"
        port = small.port
    try:
        await until(lambda: legs.slm.state.phase == "failed")
        assert str(port) in legs.slm.state.detail
        async with serving("llama.cpp", port=port):
            await until(lambda: legs.slm.state.phase == "remote")
    finally:
        await legs.close()


async def test_a_server_elsewhere_hears_nothing_before_a_turn_may_go_there(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for another machine: it is this one's, so that a test may listen there."""
    heard: list[bytes] = []

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))
        writer.close()

    monkeypatch.setattr("rag.models.addresses.is_loopback", lambda url: "127.0.0.2" not in url)
    listener = await asyncio.start_server(hear, "127.0.0.2", 0)
    elsewhere = f"http://127.0.0.2:{listener.sockets[0].getsockname()[1]}/v1"
    async with serving("llama.cpp") as small:
        settings = hosted(tmp_path, slm_base_url=small.v1, llm_base_url=elsewhere, llm_model="big")
        legs = Legs(settings)
        try:
            await legs.start(pull_llm=True, opening=lambda leg, examples: [{"role": "system", "content": "Begin."}])
            await legs.located()
            await ask(legs, library, settings)
            assert heard == []
            assert legs.llm.state.phase == "remote"
        finally:
            await legs.close()
            listener.close()


async def test_a_model_that_was_renamed_on_its_server_is_looked_up_once_more(library: Library, tmp_path: Path) -> None:
    shapes = wire("foundry-cli")
    old = next(one for one in shapes["chat"]["models"] if one.lower().startswith("phi-4-mini-instruct"))
    async with serving("foundry-cli") as address:
        settings = hosted(tmp_path, slm_base_url=address.v1, slm_model="phi-4-mini", llm_base_url="http://127.0.0.1:9")
        legs = Legs(settings)
        try:
            backend = await legs.slm.backend()
            backend.model = old.rpartition(":")[0] + ":1"  # what it was called before an update
            turn = await ask(legs, library, settings, "slm")
            assert turn.drafts[-1].model == old
        finally:
            await legs.close()


async def test_the_workshops_pair_answers_where_foundry_local_has_it_and_its_end_holds_nobody_up(
    library: Library, tmp_path: Path
) -> None:
    ended = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    hub = await asyncio.start_server(slow, "127.0.0.1", 0)
    cache = wire("foundry-cli")["gets"]["/v1/models"]["body"]
    both = [*cache["data"], cache["data"][0] | {"id": "gpt-oss-20b-cuda-gpu:1"}]
    async with serving("foundry-cli", replies={"/v1/models": Reply(cache | {"data": both})}) as address:
        settings = hosted(
            tmp_path, foundry_endpoint=address, weights_source="hub",
            hub_url=f"http://127.0.0.1:{hub.sockets[0].getsockname()[1]}",
        )  # fmt: skip
        legs = Legs(settings)
        await legs.located()
        turn = await ask(legs, library, settings, "slm")
        assert turn.drafts[0].model.lower().startswith("phi-4-mini-instruct")
        assert legs.llm.model.startswith("gpt-oss-20b")
    try:
        # The models that run here would be next, and nobody waits for hundreds of megabytes in the middle of a turn.
        with pytest.raises(ModelUnreachable, match="on its way here"):
            await legs.slm.backend()
        assert legs.slm.state.phase == "fetching"
    finally:
        ended.set()
        await legs.close()
        hub.close()


# --- looked after ----------------------------------------------------------------------------------------------------


async def test_the_opening_of_its_prompts_is_read_before_anybody_asks(real: Settings) -> None:
    legs = Legs(real)
    rows = " ".join(f"The number {number} is odd." for number in range(60))
    begins = [{"role": "system", "content": rows}]
    try:
        await legs.start(pull_llm=False, opening=lambda leg, examples: begins)
        await until(lambda: not legs.waiting)
        backend = await legs.slm.backend()
        body = {"model": "smollm2-135m", "max_tokens": 1, "messages": [*begins, {"role": "user", "content": "Which?"}]}
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
            headers = {"Authorization": f"Bearer {legs.slm.key}"}
            told = (await client.post(f"{backend.base_url}/chat/completions", json=body, headers=headers)).json()
        assert told["timings"]["cache_n"] > 10 * told["timings"]["prompt_n"], told["timings"]
    finally:
        await legs.close()


async def test_a_model_that_nobody_asks_gives_its_memory_back_and_comes_again(library: Library, real: Settings) -> None:
    settings = real.model_copy(update={"idle_unload_s": 0.2})
    legs = Legs(settings)
    try:
        await legs.start(pull_llm=False)
        await until(lambda: legs.slm.state.phase == "resting")
        assert legs.slm.pid is None
        assert not legs.slm.state.usable
        turn = await ask(legs, library, settings, "slm")
        assert turn.drafts[0].text
        assert turn.trace.find("load") is not None
    finally:
        await legs.close()
