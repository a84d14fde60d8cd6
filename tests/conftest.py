"""What every test stands on: no network but this machine, no settings from the outside, real documents, real weights."""

import asyncio
import ipaddress
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rag import words
from rag.corpus.library import Library
from rag.errors import WeightsError
from rag.models import weights
from rag.settings import Settings

CORPUS = Path(__file__).parent.parent / "docs_corpus"


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Only loopback may be reached from the test process; weights are fetched by pip, in a process of its own."""
    if event != "socket.connect" or not isinstance(arguments[1], tuple):
        return
    host = arguments[1][0]
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise PermissionError(f"A test tried to reach {host}; tests may only reach this machine.")


sys.addaudithook(_refuse_network)

# A text that nobody wrote must not hide behind its key.
words.strict = True

# The developer's own settings must not decide what the tests see; child processes inherit this too.
for name in [name for name in os.environ if name.startswith(("RAG_", "CHAINLIT_", "BENCH_", "COMPARE_"))]:
    del os.environ[name]
os.environ.pop("FOUNDRY_LOCAL_ENDPOINT", None)
# Nor must servers that happen to run on the developer's machine; and nobody waits here for what suits it best.
os.environ.update(RAG_DISCOVER="false", RAG_TUNE="false", RAG_PROBE="false")


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Defaults, with folders of the test's own and none of a .env file."""
    return Settings(_env_file=None, cache_dir=tmp_path / "cache", data_dir=tmp_path / "data")  # type: ignore[call-arg]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """The shipped documents."""
    library = open_library(CORPUS, tmp_path_factory.mktemp("cache"))
    yield library
    library.close()


def open_library(docs: Path, cache_dir: Path, **more: Any) -> Library:
    """A library that has read its folder."""
    library = Library(Settings(_env_file=None, docs=docs, cache_dir=cache_dir, **more))  # type: ignore[call-arg]
    library.update()
    return library


@pytest.fixture(scope="session")
def small_weights() -> Path:
    """The real SmolLM2, fetched once into the user's cache folder."""
    try:
        return weights.pull(
            weights.find("smollm2-135m"),
            Settings(_env_file=None).cache_dir,
            progress=lambda _: None,  # type: ignore[call-arg]
        )
    except WeightsError as error:
        pytest.skip(f"SmolLM2's weights cannot be had here: {error}")
