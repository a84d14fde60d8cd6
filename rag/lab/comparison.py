"""What was measured of two models on the same prompts: Plan, Run, Refinement, Report.

Knows what each figure is made of, and how two models differ; asks nobody and shows nothing. Which of two answers is better
it does not know. A figure that is not known is left out, or None.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from rag import __version__
from rag.errors import UserError
from rag.lab.difference import similarity
from rag.lab.machine import machine
from rag.lab.speed import LEAST_TOKENS
from rag.models.backend import Message
from rag.models.places import LegName
from rag.resources import Used
from rag.turn.bill import Price

TEMPERATURE = 0.0
SEED = 1
LEGS: tuple[LegName, LegName] = ("slm", "llm")
FIGURES = (
    "cold_ttft_ms",
    "warm_ttft_ms",
    "cold_total_ms",
    "warm_total_ms",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "input_tokens",
    "output_tokens",
    "cpu_s",
    "peak_memory_mb",
    "energy_j",
    "cost",
)


@dataclass(frozen=True)
class Plan:
    """What is asked, and how often. Raises UserError for what cannot be done."""

    prompts: tuple[str, ...]
    repeat: int = 3
    """Rounds for each prompt; in each, both models answer once cold and once warm."""
    retrieve: bool = True
    """Put passages of the documents before both; otherwise they get the prompt alone."""
    refine: bool = False
    """Also have the larger model refine the small one's draft."""
    seed: int = SEED

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UserError("There is no prompt. Name one with --prompt.")
        if self.repeat < 1:
            raise UserError(f"--repeat is {self.repeat}; at least 1 is needed.")

    @property
    def answers(self) -> int:
        """How many are measured; a refined one counts once."""
        return len(self.prompts) * (2 * len(LEGS) * self.repeat + self.refine)


@dataclass(frozen=True)
class Asked:
    """One prompt, as both were sent it."""

    prompt: str
    messages: list[Message]
    passages: tuple[str, ...] = ()
    """The places of those that are in the messages."""
    silent: bool = False
    """The documents hold too little of it, so it was asked without passages."""


@dataclass(frozen=True)
class Model:
    """One of the two."""

    name: str
    runs_on: str
    where: str
    ours: bool
    """Its server is a process of ours."""
    load_s: float | None
    """From the start of its server to the first token; None where we did not start it, or had to fetch it."""
    price: Price


@dataclass(frozen=True)
class Run:
    """One answer of one model. Times begin when the request has been sent."""

    prompt: int
    """Which of the plan's prompts, from 0."""
    leg: LegName
    model: str
    cold: bool
    text: str
    finish_reason: str | None
    ttft_ms: float
    """Until the first token of the answer; what is thought before it counts as waiting."""
    total_ms: float
    read_ms: float
    """Until the first token of all, thought or not."""
    write_ms: float
    """From then to the end."""
    streamed: bool
    """It came piece by piece; of what comes whole neither the reading nor the writing is known."""
    input_tokens: int | None
    """As the server counts; None where it does not, here and below."""
    output_tokens: int | None
    cost: float | None
    """None where a price is not known either."""
    used: Used | None = None
    """None for a part of a refined answer, which is measured as a whole."""

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Tokens read / seconds to the first token; None for a warm one, which reads little."""
        if not self.cold or not self.streamed or self.input_tokens is None or not self.read_ms:
            return None
        return self.input_tokens / (self.read_ms / 1000)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """(tokens written - 1) / seconds after the first; None where there are too few of them to tell."""
        return blended([self])

    def to_dict(self) -> dict[str, Any]:
        return {
            "cold": self.cold,
            "ttft_ms": round(self.ttft_ms, 1),
            "total_ms": round(self.total_ms, 1),
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "prefill_tokens_per_s": _rounded(self.prefill_tokens_per_s),
            "decode_tokens_per_s": _rounded(self.decode_tokens_per_s),
            "finish_reason": self.finish_reason,
            "cost": self.cost,
            "used": self.used.to_dict() if self.used else None,
        }


@dataclass(frozen=True)
class Refinement:
    """Draft, then refine: the small model writes, the larger one corrects. Their servers had forgotten the prompt."""

    prompt: int
    draft: Run | None
    refined: Run | None
    ttft_ms: float | None
    """Until the first token that a user sees, which is the draft's."""
    answer_ttft_ms: float | None
    """Until the first token that stands: of the refined text."""
    total_ms: float
    cpu_s: float | None
    """Of both models' servers; None where one of them is not ours."""
    why: str = ""
    """Why nothing was refined; then `draft` or `refined` or both are None."""

    @property
    def parts(self) -> tuple[Run, ...]:
        return tuple(part for part in (self.draft, self.refined) if part is not None)

    @property
    def whole(self) -> bool:
        return self.draft is not None and self.refined is not None

    @property
    def output_tokens(self) -> int | None:
        """Of both parts."""
        counts = [part.output_tokens for part in self.parts if part.output_tokens is not None]
        return sum(counts) if len(counts) == len(self.parts) else None

    @property
    def cost(self) -> float | None:
        """Of both parts."""
        costs = [part.cost for part in self.parts if part.cost is not None]
        return sum(costs) if len(costs) == len(self.parts) else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "draft": _with_text(self.draft),
            "refined": _with_text(self.refined),
            "ttft_ms": _rounded(self.ttft_ms),
            "answer_ttft_ms": _rounded(self.answer_ttft_ms),
            "total_ms": round(self.total_ms, 1),
            "blended_tokens_per_s": _rounded(blended(self.parts)) if self.whole else None,
            "output_tokens": self.output_tokens,
            "cpu_s": _rounded(self.cpu_s),
            "cost": self.cost,
            "why_not": self.why or None,
        }


@dataclass(frozen=True)
class Failure:
    """A model that has no answer to one prompt, and may have to others."""

    prompt: int
    leg: LegName
    error: str


@dataclass
class Report:
    """What was measured. It is filled answer by answer, so that there is something to show of a run that broke off."""

    plan: Plan
    max_tokens: int = 0
    currency: str = ""
    models: dict[LegName, Model] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    refinements: list[Refinement] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    complete: bool = False

    @property
    def empty(self) -> bool:
        """Was nothing learnt yet?"""
        return not (self.runs or self.refinements or self.failures)

    def of(self, prompt: int, leg: LegName) -> list[Run]:
        """That model's answers to that prompt, in the order they were given: cold, warm, cold, warm."""
        return [run for run in self.runs if (run.prompt, run.leg) == (prompt, leg)]

    def same_text(self, prompt: int, leg: LegName) -> bool | None:
        """Were all answers the same? None where there was but one."""
        texts = [run.text for run in self.of(prompt, leg)]
        return len(set(texts)) == 1 if len(texts) > 1 else None

    def failure(self, prompt: int, leg: LegName) -> str | None:
        return next((one.error for one in self.failures if (one.prompt, one.leg) == (prompt, leg)), None)

    def figures(self, prompt: int, leg: LegName) -> dict[str, float]:
        """What is known of one model on one prompt: medians. Times in ms; CPU, energy and cost are of a cold answer, the
        warm total of warm answers in the words of a cold one."""
        runs = self.of(prompt, leg)
        cold, warm = ([run for run in runs if run.cold is kind] for kind in (True, False))
        used = [run.used for run in cold if run.used is not None]
        # Of another text, another length would be told.
        again = [run for run in warm if run.text in {one.text for one in cold}]
        found = {
            "cold_ttft_ms": _median([run.ttft_ms for run in cold]),
            "warm_ttft_ms": _median([run.ttft_ms for run in warm]),
            "cold_total_ms": _median([run.total_ms for run in cold]),
            "warm_total_ms": _median([run.total_ms for run in again]),
            "prefill_tokens_per_s": _median([run.prefill_tokens_per_s for run in cold]),
            # How fast it writes depends on no cache.
            "decode_tokens_per_s": _median([run.decode_tokens_per_s for run in runs]),
            "input_tokens": _median([run.input_tokens for run in cold]),
            "output_tokens": _median([run.output_tokens for run in cold]),
            "cpu_s": _median([one.cpu_s for one in used]),
            "energy_j": _median([one.energy.joules for one in used]),
            "cost": _median([run.cost for run in cold]),
        }
        peaks = [run.used.peak_memory_mb for run in runs if run.used and run.used.peak_memory_mb is not None]
        found["peak_memory_mb"] = max(peaks, default=None)
        return {name: found[name] for name in FIGURES if found.get(name) is not None}  # type: ignore[misc]

    def ratios(self, prompt: int) -> dict[str, float]:
        """The larger model's figure / the small one's, where both are known."""
        return _ratios(*(self.figures(prompt, leg) for leg in LEGS))

    def averages(self) -> dict[LegName, dict[str, float]]:
        """Means over the prompts; of memory the peak.

        Over prompts that both models have the figure of, where there are such: so that both answered the same.
        """
        each = {leg: [self.figures(number, leg) for number in range(len(self.asked))] for leg in LEGS}
        found: dict[LegName, dict[str, float]] = {leg: {} for leg in LEGS}
        for name in FIGURES:
            both = [name in one and name in other for one, other in zip(*each.values(), strict=True)]
            for leg, figures in each.items():
                values = [
                    one[name]
                    for one, paired in zip(figures, both, strict=True)
                    if name in one and (paired or not any(both))
                ]
                if values:
                    found[leg][name] = max(values) if name == "peak_memory_mb" else statistics.mean(values)
        return found

    def refining(self) -> dict[str, float]:
        """Means over the prompts whose draft was refined: of each part, and of the whole, whose speed is `blended`.

        `alone_total_ms` is the larger model's own answer to the same prompts, cold.
        """
        done = [one for one in self.refinements if one.whole]
        found: dict[str, float | None] = {}
        for part in ("draft", "refined"):
            runs: list[Run] = [getattr(one, part) for one in done]
            found[f"{part}_ttft_ms"] = _mean([run.ttft_ms for run in runs])
            found[f"{part}_total_ms"] = _mean([run.total_ms for run in runs])
            found[f"{part}_output_tokens"] = _mean([run.output_tokens for run in runs])
            found[f"{part}_tokens_per_s"] = blended(runs)
            found[f"{part}_cost"] = _mean([run.cost for run in runs])
        found["ttft_ms"] = _mean([one.ttft_ms for one in done])
        found["answer_ttft_ms"] = _mean([one.answer_ttft_ms for one in done])
        found["total_ms"] = _mean([one.total_ms for one in done])
        alone = [self.figures(one.prompt, "llm").get("cold_total_ms") for one in done]
        found["alone_total_ms"] = _mean(alone)
        found["output_tokens"] = _mean([one.output_tokens for one in done])
        found["blended_tokens_per_s"] = blended([part for one in done for part in one.parts])
        found["cpu_s"] = _mean([one.cpu_s for one in done])
        found["cost"] = _mean([one.cost for one in done])
        return {name: value for name, value in found.items() if value is not None}

    def metrics(self) -> dict[str, float]:
        """Flat: `slm_` and `llm_` with each average, `ratio_` with larger / small, `refine_` with the refined answers'."""
        averages = self.averages()
        found: dict[str, float] = {}
        for leg in LEGS:
            found |= {f"{leg}_{name}": value for name, value in averages[leg].items()}
            if leg in self.models and (load_s := self.models[leg].load_s) is not None:
                found[f"{leg}_load_s"] = load_s
            same = [told for number in range(len(self.asked)) if (told := self.same_text(number, leg)) is not None]
            if same:
                found[f"{leg}_same_text"] = sum(same) / len(same)
        found |= {f"ratio_{name}": value for name, value in _ratios(*averages.values()).items()}
        found |= {f"refine_{name}": value for name, value in self.refining().items()}
        return {name: round(value, 10 if name.endswith("cost") else 3) for name, value in found.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics(),
            "complete": self.complete,
            "prompts": [self._prompt(number) for number in range(len(self.asked))],
            "planned_prompts": len(self.plan.prompts),
            "repeat": self.plan.repeat,
            "retrieve": self.plan.retrieve,
            "refine": self.plan.refine,
            "temperature": TEMPERATURE,
            "seed": self.plan.seed,
            "max_tokens": self.max_tokens,
            "currency": self.currency,
            "models": {
                leg: {
                    "name": model.name,
                    "runs_on": model.runs_on,
                    "where": model.where,
                    "load_s": _rounded(model.load_s),
                    "input_price": model.price.input,
                    "output_price": model.price.output,
                    "energy": self.energy(leg),
                }
                for leg, model in self.models.items()
            },
            "version": __version__,
            "versions": {name: metadata.version(name) for name in ("openai", "xllamacpp")},
            "machine": machine(),
        }

    def energy(self, leg: LegName) -> str | None:
        """Where the joules are from, and whether they were measured; None where there are none."""
        for run in self.runs:
            if run.leg == leg and run.used is not None and run.used.energy.joules is not None:
                energy = run.used.energy
                return f"measured: {energy.source}" if energy.measured else energy.source
        return None

    def _prompt(self, number: int) -> dict[str, Any]:
        asked = self.asked[number]
        told: dict[str, Any] = {
            "prompt": asked.prompt,
            "messages": asked.messages,
            "passages": list(asked.passages),
            "silent": asked.silent,
        }
        for leg in LEGS:
            runs = self.of(number, leg)
            told[leg] = {
                "text": runs[0].text if runs else None,
                "finish_reason": runs[0].finish_reason if runs else None,
                "same_text": self.same_text(number, leg),
                "error": self.failure(number, leg),
                **{name: _rounded(value) for name, value in self.figures(number, leg).items()},
                # A text that differs from the first one is told with its run.
                "runs": [run.to_dict() | ({"text": run.text} if run.text != runs[0].text else {}) for run in runs],
            }
        told["ratios"] = {name: _rounded(value) for name, value in self.ratios(number).items()}
        texts = [told[leg]["text"] for leg in LEGS]
        told["word_similarity"] = None if None in texts else _rounded(similarity(*texts))
        refined = [one.to_dict() for one in self.refinements if one.prompt == number]
        return told | ({"refinement": refined[0]} if refined else {})


def blended(runs: Sequence[Run]) -> float | None:
    """Tokens a second of several answers together: sum of (tokens - 1) / sum of the seconds after each one's first token.

    So the longer part weighs more, and the blend lies between its parts. None where one of them was not counted or came
    whole, or where they are too short together.
    """
    counts = [run.output_tokens for run in runs if run.streamed and run.output_tokens]
    write_s = sum(run.write_ms for run in runs) / 1000
    if len(counts) < len(runs) or sum(counts) < LEAST_TOKENS or not write_s:
        return None
    return (sum(counts) - len(runs)) / write_s


def _with_text(run: Run | None) -> dict[str, Any] | None:
    return None if run is None else {"model": run.model, "text": run.text} | run.to_dict()


def _ratios(slm: Mapping[str, float], llm: Mapping[str, float]) -> dict[str, float]:
    return {name: llm[name] / slm[name] for name in FIGURES if slm.get(name) and name in llm}


def _mean(values: Sequence[float | None]) -> float | None:
    """None where one of them is not known, or there are none."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known and len(known) == len(values) else None


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _rounded(value: float | None) -> float | None:
    # What a token costs may be a ten-millionth.
    return None if value is None else round(value, 3 if abs(value) >= 0.01 else 10)
