"""Where the model of each leg is to be had: on a server that was named or found, or run here from a file.

Knows the order in which places are looked at, and what the settings name. Starts nothing, sends no text; what a server
is and which names mean what, discovery and names know.

    RAG_SLM_BASE_URL          that server, whatever else there is
    RAG_SLM_MODEL=x.gguf      a file, run here by llama.cpp
    RAG_SLM_MODEL=folder      an ONNX model, run here by Foundry Local's own library
    RAG_SLM_MODEL=foundry:x   a model of Foundry Local's catalogue, fetched and run by that library
    RAG_SLM_MODEL=name        the best match on a server of this machine, or in the catalogue of models that run here
    nothing                   the workshop's pair where Foundry Local has both; else the pair that runs here
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rag.errors import ModelUnknown, UserError
from rag.models import addresses, discovery, foundry, names, weights
from rag.models.discovery import Offered, Server
from rag.models.weights import Weights
from rag.settings import Settings

LegName = Literal["slm", "llm"]
FOUNDRY_PAIR: dict[LegName, str] = {"slm": "phi-4-mini", "llm": "gpt-oss-20b"}
"""Of the workshop that this project grew from."""
# One look serves both legs, and the commands that only ask what there is.
FRESH_S = 5.0


@dataclass(frozen=True)
class Hosted:
    """On a server that speaks the OpenAI wire format."""

    server: Server
    model: str
    context_tokens: int | None = None
    provider: str | None = None
    """Execution provider and device, where the server tells."""
    named: bool = True
    """The user named the server; otherwise it was found."""

    @property
    def runs_on(self) -> str:
        title = discovery.TITLES[self.server.kind]
        return f"{title}, {self.provider}" if self.provider else title


@dataclass(frozen=True)
class Embedded:
    """Run here by llama.cpp: a model of the catalogue, or a file of the user's."""

    weights: Weights | None = None
    file: Path | None = None

    @property
    def model(self) -> str:
        if self.weights is not None:
            return self.weights.name
        assert self.file is not None, "an embedded model has weights or a file"
        return self.file.stem


@dataclass(frozen=True)
class Managed:
    """Run here by Foundry Local's library."""

    source: foundry.Source

    @property
    def model(self) -> str:
        return self.source.name


Place = Hosted | Embedded | Managed


class Search:
    """What was found on this machine a moment ago; both legs share it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._found: list[Server] = []
        self._at: float | None = None

    async def servers(self) -> list[Server]:
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if self._at is None or now - self._at > FRESH_S:
                self._found = await discovery.find(self._settings)
                self._at = asyncio.get_running_loop().time()
            return self._found

    def forget(self) -> None:
        """What was found has changed."""
        self._at = None


def named(leg: LegName, settings: Settings) -> tuple[str | None, bool]:
    """The model that the user named for that leg, None if none; and whether anything at all was named."""
    given = settings.model_fields_set
    model = getattr(settings, f"{leg}_model") if f"{leg}_model" in given else None
    anything = bool(given & {"slm_model", "llm_model", "slm_base_url", "llm_base_url"})
    return model, anything


def declared(leg: LegName, settings: Settings) -> Place | None:
    """The place that settings alone tell; None when it must be looked for. Raises UserError for what cannot be."""
    model: str = getattr(settings, f"{leg}_model")
    address: str | None = getattr(settings, f"{leg}_base_url")
    variable = f"RAG_{leg.upper()}_MODEL"
    if address:
        return Hosted(Server(addresses.tidy(address), "openai", f"RAG_{leg.upper()}_BASE_URL"), model)
    if model.lower().endswith(".gguf"):
        file = Path(model).expanduser()
        if not file.is_file():
            raise UserError(f"No model file at {file}. Set {variable} to one that is there.")
        return Embedded(file=file)
    if source := foundry.parse(model, variable):
        return Managed(source)
    if settings.discover or settings.foundry_endpoint is not None:
        return None
    return Embedded(weights.find(model))


async def locate(leg: LegName, settings: Settings, search: Search) -> tuple[Place, str]:
    """The place of a leg that settings alone do not tell, and a line for the user where there is more to say.

    Raises ModelUnknown when no server and no catalogue has a model of that name.
    """
    servers = await search.servers()
    model, anything = named(leg, settings)
    if model is None:
        usual = Embedded(weights.find(getattr(settings, f"{leg}_model")))
        if anything:
            return usual, ""
        found, note = _workshop(leg, servers)
        return found or usual, note
    ours = Server("", "embedded", "catalogue", models=tuple(Offered(name) for name in weights.CATALOGUE))
    if (best := names.choose(model, [*servers, ours])) is None:
        raise names.unknown(model, [*servers, ours])
    server, offered = best
    if server is ours:
        return Embedded(weights.find(offered.id)), ""
    return _hosted(server, offered, named=False), ""


def settle(leg: LegName, settings: Settings, server: Server, others: Sequence[Server] = ()) -> Hosted:
    """Which model of the server that the user named is meant. Raises ModelUnknown, never guesses.

    A server that does not tell its models is taken at the user's word.
    """
    model, _ = named(leg, settings)
    wanted = model or getattr(settings, f"{leg}_model")
    if not server.models:
        return Hosted(server, wanted)
    if model is None:
        if len(server.models) == 1:
            return _hosted(server, server.models[0])
        usual = FOUNDRY_PAIR[leg] if server.kind == "foundry" else wanted
        if offered := names.resolve(usual, server.models):
            return _hosted(server, offered)
        raise ModelUnknown(
            f"{server.base_url} has several models and none was named:"
            f" {', '.join(one.id for one in server.models)}. Set RAG_{leg.upper()}_MODEL to one of them."
        )
    if offered := names.resolve(model, server.models):
        return _hosted(server, offered)
    raise names.unknown(model, [server, *others])


def _hosted(server: Server, offered: Offered, *, named: bool = True) -> Hosted:
    return Hosted(server, offered.id, offered.context_tokens, offered.provider, named)


def _workshop(leg: LegName, servers: Sequence[Server]) -> tuple[Hosted | None, str]:
    """The workshop's pair, when a Foundry Local has both; else how to get it."""
    for server in servers:
        if server.kind != "foundry":
            continue
        pair = {name: names.resolve(alias, server.models) for name, alias in FOUNDRY_PAIR.items()}
        if (offered := pair[leg]) is not None and all(pair.values()):
            return _hosted(server, offered, named=False), ""
        missing = [FOUNDRY_PAIR[name] for name, one in pair.items() if one is None]
        if leg == "llm":  # said once
            return None, (
                f"Foundry Local is at {server.base_url}, without {' and '.join(missing)} in its cache, so the models"
                f" that run here answer. To have them: {'; '.join(f'foundry model download {m}' for m in missing)}"
            )
        return None, ""
    return None, ""
