"""Which models can be had: those that run here, and those on servers of this machine, as a table.

Knows how to list and to show; what a server is, discovery knows, and what was seen of a model, its capabilities.
"""

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from rag import terminal
from rag.models import discovery, native, weights
from rag.models.capabilities import EMBEDDED, Capabilities, Tried
from rag.models.discovery import TITLES, Offered, Server
from rag.models.weights import Weights
from rag.settings import Settings


@dataclass(frozen=True)
class Inventory:
    here: tuple[tuple[Weights, bool], ...]
    """Models that run here, and whether each is fetched."""
    servers: tuple[tuple[Server, tuple[tuple[Offered, Capabilities | None], ...]], ...]
    runtime: str

    def to_dict(self) -> dict[str, Any]:
        return {
            "models": [
                {
                    "name": entry.name,
                    "size_bytes": entry.size_bytes,
                    "license": entry.license,
                    "installed": installed,
                }
                for entry, installed in self.here
            ],
            "runtime": self.runtime,
            "servers": [
                {
                    **server.to_dict(),
                    "models": [
                        {
                            "id": offered.id,
                            "loaded": offered.loaded,
                            "context_tokens": offered.context_tokens or (seen.context_tokens if seen else None),
                            "provider": offered.provider,
                            "capabilities": seen.to_dict() if seen else None,
                        }
                        for offered, seen in models
                    ],
                }
                for server, models in self.servers
            ],
        }


async def take(settings: Settings) -> Inventory:
    """Look around; nothing is started, and only servers of this machine, or that the user named, are asked."""
    tried = Tried(settings.cache_dir)
    here = tuple((one, weights.installed(one, settings.cache_dir) is not None) for one in weights.CATALOGUE.values())
    found = await discovery.find(settings)
    servers = tuple(
        (server, tuple((one, tried.get(server.base_url, one.id, server.version)) for one in server.models))
        for server in found
    )
    built = native.find(settings.cache_dir)
    return Inventory(here, servers, "llama.cpp, built for this processor" if built else "llama.cpp, as installed")


def show(inventory: Inventory) -> None:
    table = Table()
    for column in ("server", "model", "loaded", "window", "logprobs"):
        table.add_column(column, overflow="fold")
    table.add_column("tokens/s", justify="right")
    for entry, installed in inventory.here:
        loaded = "fetched" if installed else f"not fetched ({entry.size_bytes / 1e6:,.0f} MB, {entry.license})"
        table.add_row("runs here", entry.name, loaded, "as set", _told(EMBEDDED.logprobs), "")
    for server, models in inventory.servers:
        title = f"{TITLES[server.kind]} {server.version or ''}".strip() + f"\n{server.base_url}"
        if not models:
            table.add_row(title, "", server.problem or "no model", "", "", "")
        for offered, seen in models:
            window = offered.context_tokens or (seen.context_tokens if seen else None)
            speed = f"{seen.tokens_per_s:.0f}" if seen and seen.tokens_per_s else ""
            name = f"{offered.id} ({offered.provider})" if offered.provider else offered.id
            logprobs = _told(seen.logprobs) if seen else "not tried"
            table.add_row(title, name, _told(offered.loaded), f"{window:,}" if window else "not told", logprobs, speed)
            title = ""
    terminal.out.print(table)
    terminal.out.print(f"Models that run here are run by {inventory.runtime}.")


def _told(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "not told"}[fact]
