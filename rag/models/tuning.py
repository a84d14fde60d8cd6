"""How many threads, which program and which batch suit this machine: measured once for each model, then remembered.

Knows how to time a model server of ours with the real weights, and when another way is better by more than chance.
Knows nothing of turns and of when there is time for it; whoever calls `tune` holds the cores.

No grid: each step keeps the best of the one before. The program first, since it matters most and makes the rest
quicker; then the threads; then the batch. A candidate that is clearly slower is stopped before it has finished. What was
measured while other programs were computing says little (with a busy neighbour one thread can beat two), so it ends the
search and is not remembered.
"""

import asyncio
import importlib.metadata
import json
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import psutil

from rag import resources
from rag.errors import ModelUnreachable
from rag.models import native, processor
from rag.models.runtime import BATCH_TOKENS, EmbeddedServer
from rag.settings import Settings

log = logging.getLogger("smallfirst")

FILE = "tuning.json"
BUDGET_S = 20.0
BATCHES = (128, 256, 512)
# What is read and written to measure, and how often: the first time also brings the weights into memory.
SENTENCES = 34  # about 300 tokens
WRITTEN_TOKENS = 24
ROUNDS = 2
CONTEXT_TOKENS = 1024
# A typical turn, by which figures are weighed.
TURN_READS_TOKENS = 400
TURN_WRITES_TOKENS = 40
# Two measurements of the same thing differ by a few percent.
BETTER_BY = 0.05
# A candidate that takes so much longer than the best did will not turn out to be better. The seconds are for its first
# round, which also brings the weights into memory, and for whatever else the machine does just then.
HOPELESS_FACTOR = 1.25
HOPELESS_SLACK_S = 0.5
# More than this that other programs take of the cores a candidate needs, in cores, is a disturbance.
DISTURBING_CORES = 0.25


@dataclass(frozen=True)
class Candidate:
    threads: int
    batch_tokens: int = BATCH_TOKENS
    program: Path | None = None
    """None: xllamacpp."""


@dataclass(frozen=True)
class Figure:
    """What was measured with one candidate."""

    candidate: Candidate
    prompt_tokens_per_s: float
    tokens_per_s: float
    run_s: float
    """How long the slowest round took."""

    @property
    def turn_ms(self) -> float:
        """Of a typical turn, at these speeds."""
        return 1000 * (TURN_READS_TOKENS / self.prompt_tokens_per_s + TURN_WRITES_TOKENS / self.tokens_per_s)

    def to_dict(self) -> dict[str, Any]:
        program = self.candidate.program
        return {
            "threads": self.candidate.threads,
            "batch_tokens": self.candidate.batch_tokens,
            "program": str(program) if program else None,
            "prompt_tokens_per_s": round(self.prompt_tokens_per_s, 1),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "turn_ms": round(self.turn_ms),
        }


@dataclass(frozen=True)
class Tuned:
    """What to run a model with."""

    threads: int
    batch_tokens: int
    program: Path | None
    """None: xllamacpp."""
    figures: tuple[dict[str, Any], ...] = ()
    """What was measured, in this order. None: not even the first candidate came to an end in time."""


def load(cache_dir: Path, model_path: Path, *, llama_server: Path | None = None, threads: int = 0) -> Tuned | None:
    """What `tune` found on this machine for these weights, with the same two settings; None: nothing that still holds."""
    try:
        stored = _read(cache_dir)[_key(cache_dir, model_path, llama_server, threads)]
        program = Path(stored["program"]) if stored["program"] else None
        tuned = Tuned(int(stored["threads"]), int(stored["batch_tokens"]), program, tuple(stored["figures"]))
    except (KeyError, TypeError, ValueError):
        return None
    usable = tuned.threads > 0 and tuned.batch_tokens > 0 and (program is None or program.is_file())
    return tuned if usable else None


async def tune(
    name: str,
    model_path: Path,
    settings: Settings,
    *,
    budget_s: float = BUDGET_S,
    disturbing_cores: float = DISTURBING_CORES,
) -> Tuned:
    """Measure, remember and return it. Cancelled, it leaves no process and remembers nothing.

    When the budget is spent the best so far stands. When other programs are busy it is the default, and not remembered.
    Raises ModelUnreachable when no program can run the model.
    """
    search = _Search(name, model_path, time.monotonic() + budget_s, disturbing_cores)
    programs: list[Path | None] = [settings.llama_server] if settings.llama_server else [None]
    if not settings.llama_server and (built := native.find(settings.cache_dir)):
        programs.insert(0, built)
    default = Candidate(settings.threads or processor.physical_cores())
    await search.step([replace(default, program=program) for program in programs])
    running = [program for program in programs if program not in search.failures]
    if not running:
        raise search.failures[programs[-1]]
    default = replace(default, program=running[0])
    if not settings.threads:
        await search.step([replace(search.chosen(default), threads=threads) for threads in thread_counts()])
    await search.step([replace(search.chosen(default), batch_tokens=batch) for batch in BATCHES])
    figures = tuple(figure.to_dict() for figure in search.figures)
    if search.disturbed:
        log.info("Other programs are busy; what suits %s is measured another time.", name)
        return Tuned(default.threads, default.batch_tokens, default.program, figures)
    chosen = search.chosen(default)
    tuned = Tuned(chosen.threads, chosen.batch_tokens, chosen.program, figures)
    key = _key(settings.cache_dir, model_path, settings.llama_server, settings.threads)
    await asyncio.to_thread(_write, settings.cache_dir, key, tuned)
    return tuned


def thread_counts() -> list[int]:
    """Worth trying here: for each physical core one, for every second, for each logical core, for the container's share."""
    quota = processor.quota()
    counts = [processor.physical_cores(), max(1, processor.physical_cores() // 2), processor.logical_cores()]
    if quota:
        counts.append(max(1, math.floor(quota)))
    return list(dict.fromkeys(counts))


class _Search:
    """The best candidate so far, and what it was measured against."""

    def __init__(self, name: str, model_path: Path, deadline_s: float, disturbing_cores: float) -> None:
        self._name = name
        self._model_path = model_path
        self._deadline_s = deadline_s
        self._disturbing_cores = disturbing_cores
        self._best: Figure | None = None
        self._tried: set[Candidate] = set()
        self.figures: list[Figure] = []
        self.failures: dict[Path | None, ModelUnreachable] = {}
        """Of the programs that do not run here."""
        self.disturbed = False
        """Other programs computed meanwhile."""

    def chosen(self, default: Candidate) -> Candidate:
        return self._best.candidate if self._best else default

    async def step(self, candidates: Sequence[Candidate]) -> None:
        """Measure those that are new. The first that can be measured is the best until another is better by enough."""
        measured: list[Figure] = []
        for candidate in candidates:
            if candidate in self._tried or self.disturbed or time.monotonic() >= self._deadline_s:
                continue
            self._tried.add(candidate)
            try:
                figure = await self._measure(candidate, _fastest([self._best, *measured]))
            except ModelUnreachable as error:
                self.failures[candidate.program] = error
                continue
            if figure is not None:
                measured.append(figure)
                self._best = self._best or figure
        self.figures += measured
        fastest = _fastest(measured)
        if fastest and self._best and fastest.turn_ms < self._best.turn_ms * (1 - BETTER_BY):
            self._best = fastest

    async def _measure(self, candidate: Candidate, fastest: Figure | None) -> Figure | None:
        """None: it was stopped, because it is slow or the time was up."""
        server = EmbeddedServer(
            self._name,
            self._model_path,
            context_tokens=CONTEXT_TOKENS,
            threads=candidate.threads,
            prompt_cache_mb=0,
            batch_tokens=candidate.batch_tokens,
            program=candidate.program,
        )
        limit_s = fastest.run_s * HOPELESS_FACTOR + HOPELESS_SLACK_S if fastest else None
        rounds: list[_Round] = []
        try:
            async with asyncio.timeout(self._deadline_s - time.monotonic()):
                await server.start()
                others = _Others(server.pid)
                try:
                    for number in range(ROUNDS):
                        async with asyncio.timeout(limit_s):
                            rounds.append(await _round(server, number))
                finally:
                    spare = max(0, processor.machine_cores() - candidate.threads)
                    self.disturbed = self.disturbed or others.cores() > spare + self._disturbing_cores
        except TimeoutError:
            pass  # what was measured until then counts
        finally:
            await server.stop()
        if not rounds:
            return None
        return Figure(
            candidate,
            prompt_tokens_per_s=max(one.prompt_tokens_per_s for one in rounds),
            tokens_per_s=max(one.tokens_per_s for one in rounds),
            run_s=max(one.run_s for one in rounds),
        )


class _Others:
    """How much other programs computed since this was made."""

    def __init__(self, ours: int | None) -> None:
        self._ours = ours
        self._began_s = time.monotonic()
        self._before_s = self._used_s()

    def cores(self) -> float:
        """On average; 0 when it was too short to tell."""
        passed_s = time.monotonic() - self._began_s
        # The system counts in hundredths of a second, for each core.
        return (self._used_s() - self._before_s) / passed_s if passed_s > 0.2 else 0.0

    def _used_s(self) -> float:
        """By everybody but our model server."""
        all_of_them = psutil.cpu_times()
        at_rest = ("idle", "iowait", "guest", "guest_nice")  # guests are counted as users already
        used_s = sum(all_of_them) - sum(getattr(all_of_them, field, 0.0) for field in at_rest)
        # None: it has died, which the request tells.
        own_s = resources.cpu_s(self._ours) if self._ours is not None else None
        return float(used_s - (own_s or 0.0))


def _fastest(figures: Sequence[Figure | None]) -> Figure | None:
    return min((figure for figure in figures if figure), key=lambda figure: figure.turn_ms, default=None)


@dataclass(frozen=True)
class _Round:
    prompt_tokens_per_s: float
    tokens_per_s: float
    run_s: float


async def _round(server: EmbeddedServer, number: int) -> _Round:
    text = f"{number}. " + " ".join(f"The number {7 * n + number} is odd." for n in range(SENTENCES))
    body = {
        "messages": [{"role": "user", "content": text}],
        "max_tokens": WRITTEN_TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": False,
    }
    began_s = time.monotonic()
    try:
        # The time limit is the caller's; no proxy stands between us and ourselves.
        async with httpx2.AsyncClient(timeout=None, trust_env=False) as client:
            response = await client.post(
                f"{server.base_url}/chat/completions", json=body, headers={"Authorization": f"Bearer {server.api_key}"}
            )
            response.raise_for_status()
            timings = response.json()["timings"]
            return _Round(
                prompt_tokens_per_s=1000 * timings["prompt_n"] / timings["prompt_ms"],
                tokens_per_s=1000 * timings["predicted_n"] / timings["predicted_ms"],
                run_s=time.monotonic() - began_s,
            )
    except (httpx2.HTTPError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelUnreachable(f"The model {server.name} could not be measured: {error!r}.") from error


# What is remembered


def _key(cache_dir: Path, model_path: Path, llama_server: Path | None, threads: int) -> str:
    """Everything that the result depends on, legible."""
    program = llama_server or native.find(cache_dir)
    parts = {
        "processor": f"{processor.name()} {processor.key()}",
        "cores": f"{processor.logical_cores()} {processor.quota() or ''}".strip(),
        "xllamacpp": importlib.metadata.version("xllamacpp"),
        "model": f"{model_path.name} {_size(model_path)}",
        "program": f"{program} {_size(program)}" if program else "none",
        "threads": threads or "any",
    }
    return ", ".join(f"{name}: {value}" for name, value in parts.items())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(cache_dir: Path) -> dict[str, Any]:
    """A damaged file is as good as none."""
    try:
        stored = json.loads((cache_dir / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _write(cache_dir: Path, key: str, tuned: Tuned) -> None:
    """Atomic. Should two processes write at once, one result is lost and measured again at the next start."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    stored = _read(cache_dir)
    stored[key] = {**asdict(tuned), "program": str(tuned.program) if tuned.program else None}
    fresh = cache_dir / f"{FILE}.{os.getpid()}.new"
    try:
        fresh.write_text(json.dumps(stored, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(fresh, cache_dir / FILE)
    finally:
        fresh.unlink(missing_ok=True)
