"""Which models there are, here and on servers, as it is listed."""

import json

import pytest

from rag import inventory
from rag.models.capabilities import Capabilities, Tried
from rag.settings import Settings

from .wire.servers import serving


async def test_models_here_and_on_servers_are_listed_with_what_is_known_of_them(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    async with serving("foundry-cli") as foundry, serving("llama.cpp", key="planted-key") as llama:
        named = settings.model_copy(update={"slm_base_url": foundry.v1, "llm_base_url": llama.v1})
        Tried(settings.cache_dir).put(
            foundry.v1, "Phi-4-mini-instruct-generic-cpu:5", None, Capabilities(logprobs=False, tokens_per_s=12.3)
        )
        taken = await inventory.take(named)
    told = json.loads(json.dumps(taken.to_dict()))
    assert {entry["name"] for entry in told["models"]} >= {"smollm2-135m", "qwen2.5-coder-1.5b"}
    assert not any(entry["installed"] for entry in told["models"])
    first, second = told["servers"]
    phi = next(one for one in first["models"] if one["id"] == "Phi-4-mini-instruct-generic-cpu:5")
    assert (first["kind"], phi["provider"], phi["loaded"]) == ("foundry", "CPU", True)
    assert phi["capabilities"]["tokens_per_s"] == 12.3
    assert second["problem"], "it wants a key that nobody gave"
    inventory.show(taken)
    shown = capfd.readouterr().out
    assert "Foundry" in shown
    assert "12" in shown
    assert "planted-key" not in shown + json.dumps(told)
