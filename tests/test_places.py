"""Where the model of each leg is to be had."""

from pathlib import Path
from typing import Any

import pytest

from rag.errors import ModelUnknown, UserError
from rag.models import places
from rag.models.discovery import Offered, Server
from rag.models.places import Embedded, Hosted, LegName, Managed, Search
from rag.settings import Settings

PHI = "Phi-4-mini-instruct-generic-cpu:5"
GPT = "gpt-oss-20b-cuda-gpu:1"
ADDRESS = "http://127.0.0.1:5273/v1"


def foundry(*ids: str) -> Server:
    return Server(ADDRESS, "foundry", "port 5273", models=tuple(Offered(id) for id in ids))


def settings_of(**named: Any) -> Settings:
    return Settings(_env_file=None, **{"discover": True, **named})  # type: ignore[call-arg]


class Found(Search):
    """What a look around would find."""

    def __init__(self, settings: Settings, *servers: Server) -> None:
        super().__init__(settings)
        self.all = list(servers)

    async def servers(self) -> list[Server]:
        return self.all


async def located(leg: LegName, settings: Settings, *servers: Server) -> tuple[places.Place, str]:
    return await places.locate(leg, settings, Found(settings, *servers))


async def test_with_nothing_named_and_foundry_local_here_the_workshops_pair_answers() -> None:
    settings = settings_of()
    for leg, id, provider in (("slm", PHI, "CPU"), ("llm", GPT, "CUDA GPU")):
        place, note = await located(leg, settings, foundry(PHI, GPT, "Phi-4-mini-reasoning-generic-cpu:3"))  # type: ignore[arg-type]
        assert isinstance(place, Hosted)
        assert (place.model, place.provider, note) == (id, provider, "")
        assert place.runs_on == f"Foundry Local, {provider}"


@pytest.mark.parametrize("ids", [(PHI,), (GPT,), (), ("Phi-4-mini-reasoning-generic-cpu:3", GPT)])
async def test_half_of_that_pair_is_none_and_how_to_get_it_is_told_once(ids: tuple[str, ...]) -> None:
    settings = settings_of()
    small, silent = await located("slm", settings, foundry(*ids))
    large, note = await located("llm", settings, foundry(*ids))
    assert (small.model, large.model) == (settings.slm_model, settings.llm_model)
    assert isinstance(small, Embedded)
    assert silent == ""
    missing = (
        {"phi-4-mini", "gpt-oss-20b"}
        - ({"phi-4-mini"} if PHI in ids else set())
        - ({"gpt-oss-20b"} if GPT in ids else set())
    )
    assert all(f"foundry model download {name}" in note for name in missing)


async def test_another_server_that_happens_to_run_is_not_used_unasked() -> None:
    ollama = Server("http://127.0.0.1:11434/v1", "ollama", "port 11434", models=(Offered("llama3:8b"),))
    place, note = await located("slm", settings_of(), ollama)
    assert isinstance(place, Embedded)
    assert note == ""


async def test_whoever_names_one_model_does_not_get_the_workshops_other() -> None:
    settings = settings_of(slm_model="smollm2-135m")
    place, _ = await located("llm", settings, foundry(PHI, GPT))
    assert isinstance(place, Embedded)


async def test_a_model_is_found_by_the_name_that_its_user_knows() -> None:
    settings = settings_of(slm_model="phi-4-mini")
    ollama = Server("http://127.0.0.1:11434/v1", "ollama", "port 11434", models=(Offered("llama3:8b"),))
    place, _ = await located("slm", settings, ollama, foundry(PHI, GPT))
    assert isinstance(place, Hosted)
    assert (place.server.base_url, place.model, place.named) == (ADDRESS, PHI, False)


async def test_our_own_models_exact_name_beats_a_likeness_elsewhere_and_the_same_name_on_a_server_comes_first() -> None:
    settings = settings_of(slm_model="qwen2.5-coder-0.5b")
    alike = foundry("qwen2.5-coder-0.5b-instruct-generic-cpu:4")
    place, _ = await located("slm", settings, alike)
    assert isinstance(place, Embedded)
    same = Server("http://127.0.0.1:8080/v1", "llama.cpp", "port 8080", models=(Offered("qwen2.5-coder-0.5b"),))
    place, _ = await located("slm", settings, alike, same)
    assert isinstance(place, Hosted)
    assert place.server is same


async def test_a_name_that_nobody_knows_is_an_error_that_lists_what_there_is() -> None:
    with pytest.raises(ModelUnknown) as caught:
        await located("slm", settings_of(slm_model="phi-5"), foundry(PHI, GPT))
    told = str(caught.value)
    assert "phi-5" in told
    assert PHI in told
    assert "smollm2-135m" in told


async def test_on_a_named_server_the_only_model_is_meant_and_of_several_one_must_be_named() -> None:
    settings = settings_of(slm_base_url=ADDRESS)
    one = Server(ADDRESS, "openai", "RAG_SLM_BASE_URL", models=(Offered("whatever"),))
    assert places.settle("slm", settings, one).model == "whatever"
    two = Server(ADDRESS, "openai", "RAG_SLM_BASE_URL", models=(Offered("a"), Offered("b")))
    with pytest.raises(ModelUnknown, match=r"a, b.*RAG_SLM_MODEL"):
        places.settle("slm", settings, two)
    assert places.settle("slm", settings, foundry(PHI, GPT)).model == PHI
    assert places.settle("llm", settings, foundry(PHI, GPT)).model == GPT


async def test_a_server_that_does_not_tell_its_models_is_taken_at_the_users_word() -> None:
    silent = Server(ADDRESS, "openai", "RAG_SLM_BASE_URL", problem="it does not list its models")
    assert places.settle("slm", settings_of(slm_base_url=ADDRESS, slm_model="mine"), silent).model == "mine"


async def test_two_addresses_that_were_exchanged_are_told() -> None:
    settings = settings_of(
        slm_base_url=ADDRESS, slm_model="small", llm_base_url="http://127.0.0.1:9999/v1", llm_model="large"
    )
    mine = Server(ADDRESS, "openai", "RAG_SLM_BASE_URL", models=(Offered("large"),))
    other = Server("http://127.0.0.1:9999/v1", "openai", "RAG_LLM_BASE_URL", models=(Offered("small"),))
    with pytest.raises(ModelUnknown) as caught:
        places.settle("slm", settings, mine, [other])
    assert "http://127.0.0.1:9999/v1" in str(caught.value)
    assert "swap" in str(caught.value) or "exchange" in str(caught.value)


def test_what_settings_alone_tell(tmp_path: Path) -> None:
    weights = tmp_path / "mine.gguf"
    weights.write_bytes(b"GGUF")
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    (onnx / "genai_config.json").write_text("{}")
    hosted = places.declared("slm", settings_of(slm_base_url="http://127.0.0.1:9", slm_model="m"))
    assert isinstance(hosted, Hosted)
    assert hosted.server.base_url == "http://127.0.0.1:9/v1"
    file = places.declared("slm", settings_of(slm_model=str(weights)))
    assert isinstance(file, Embedded)
    assert file.model == "mine"
    assert isinstance(places.declared("slm", settings_of(slm_model=str(onnx))), Managed)
    assert isinstance(places.declared("llm", settings_of(llm_model="foundry:phi-4-mini")), Managed)
    assert places.declared("slm", settings_of()) is None
    assert isinstance(places.declared("slm", settings_of(discover=False)), Embedded)
    with pytest.raises(UserError, match="RAG_SLM_MODEL"):
        places.declared("slm", settings_of(slm_model="/nowhere/x.gguf"))
    with pytest.raises(UserError, match="smollm2-135m"):
        places.declared("slm", settings_of(slm_model="gpt-5", discover=False))
