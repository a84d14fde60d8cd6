"""What was fitted for one pair of models: how signals become a probability, and where the lines are drawn.

Knows its file, and what it depends on: the models, the prompts, the way text becomes terms, and what a model reads. Another
of any of these is another pair, for which nothing is fitted. Fitting is `lab/calibration`'s, signals are `confidence`'s.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from rag.corpus import analysis, documents
from rag.errors import UserError
from rag.settings import Settings
from rag.turn import prompt

FORMAT = 1
SIGNALS = 1
"""Raised when a feature comes to mean something else: then old weights mean nothing."""
SHIPPED = Path(__file__).parent / "calibrations"


@dataclass(frozen=True)
class Scorer:
    """A probability from features: sigmoid(bias + sum of weight * feature)."""

    weights: Mapping[str, float]
    bias: float
    usual: Mapping[str, float] = field(default_factory=dict)
    """What the features were on average where this was fitted; 0 for those not named."""

    def probability(self, features: Mapping[str, float]) -> float:
        x = self.bias + sum(weight * features[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, x))))

    def worst(self, features: Mapping[str, float]) -> str:
        """The feature that lowers the probability most, beside what is usual."""
        return min(self.weights, key=lambda name: self.weights[name] * (features[name] - self.usual.get(name, 0.0)))


@dataclass(frozen=True)
class Line:
    """Where a scorer decides: below `at`, no."""

    scorer: Scorer
    at: float


@dataclass(frozen=True)
class Calibration:
    """Everything that was fitted for one pair, and on what."""

    key: str
    slm: str
    llm: str
    right: Line
    """The small model's whole draft is right, with logprobs; from the line on it is accepted."""
    right_without_logprobs: Line
    early: Mapping[int, Line] = field(default_factory=dict)
    """After so many tokens (0: before the first): below the line, the draft is given up."""
    check: float | None = None
    """The larger model's own Yes over No, as a difference of logprobs: below it, the passages don't answer the question."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Data set, questions, figures and versions, for people."""

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        whole.replace(path)


def load(path: Path) -> Calibration:
    """Raises UserError for a file that is none."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held.pop("format") != FORMAT:
            raise ValueError("made by another version")
        for name in ("right", "right_without_logprobs"):
            held[name] = _line(held[name])
        held["early"] = {int(after): _line(line) for after, line in held["early"].items()}
        return Calibration(**held)
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no calibration ({error}). Delete it, or run smallfirst calibrate again.") from None


def key(slm: str, llm: str, settings: Settings) -> str:
    """Names everything that a fit depends on."""
    worded = [prompt.SYSTEM, prompt.SYSTEM_LARGE, prompt.EXAMPLES, prompt.CHECK, prompt.CHECKED_EXAMPLES]
    read = [
        settings.slm_examples, settings.slm_passages, settings.llm_passages, settings.passage_chars,
        settings.evidence_tokens, settings.top_k,
    ]  # fmt: skip
    depends = [slm, llm, worded, analysis.VERSION, documents.VERSION, SIGNALS, read]
    return hashlib.sha256(json.dumps(depends, ensure_ascii=False).encode()).hexdigest()[:16]


def own_path(slm: str, llm: str, settings: Settings) -> Path:
    """Where the user's own calibration of that pair is kept."""
    name = "-".join(re.sub(r"[^\w.]+", "_", model) for model in (slm, llm))
    return settings.cache_dir / "calibrations" / f"{name}-{key(slm, llm, settings)}.json"


@lru_cache(16)
def find(slm: str, llm: str, settings: Settings) -> Calibration | None:
    """The user's own calibration of the pair, or the shipped one; None when neither was made for just this.

    Looked up once; a new one counts from the next start.
    """
    wanted = key(slm, llm, settings)
    own = own_path(slm, llm, settings)
    if own.is_file():
        return load(own)
    return next((found for path in sorted(SHIPPED.glob("*.json")) if (found := load(path)).key == wanted), None)


def _line(held: Mapping[str, Any]) -> Line:
    return Line(Scorer(**held["scorer"]), held["at"])
