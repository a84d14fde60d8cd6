"""How good answers are and what they cost: figures of a run over a data set, and what they are compared with.

Knows outcomes and how to count them: answerable and unanswerable questions apart, each share with its 95% interval.
Asking is `answers`' work, showing `quality_view`'s. "Right" means that a gold answer stands in the answer, or, where there
is none, that it is a refusal; the rubric's scores and the judge's grades stand beside it.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rag import __version__
from rag.lab import curves, evaluation, ragas_scores, rubric
from rag.lab import dataset as datasets
from rag.lab.answers import Outcome
from rag.lab.judge import Grades, rank_correlation
from rag.lab.machine import machine
from rag.lab.rubric import DIMENSIONS, Scores, evidence_of
from rag.settings import Mode, Settings
from rag.trace import Trace

EARLY_TOKENS = 16
"""An escalation is early when its draft had no more tokens when it was decided: given up, or ended by then."""
Z95 = 1.959964
RANDOM_MIX = "random mix"
RUBRIC = tuple(f"rubric_{name}" for name in DIMENSIONS)
MIXED: tuple[str, ...] = (
    "right",
    "right_answerable",
    "refused_unanswerable",
    "answered_answerable",
    "compute_s",
)


@dataclass
class Row:
    """One question, and what was found of it."""

    outcome: Outcome
    scores: Scores | None
    """By rules; None where the turn failed."""
    asked: bool = False
    """The judge was asked of its answer."""
    grades: Grades | None = None
    """The judge's; None where it was not asked, or gave none."""

    @property
    def answered(self) -> bool:
        """Somebody wrote an answer: it is no refusal, and nothing failed."""
        return self.outcome.turn is not None and not self.outcome.refused

    def to_dict(self) -> dict[str, Any]:
        outcome, turn = self.outcome, self.outcome.turn
        case = outcome.case
        return {
            "id": case.id,
            "kind": case.kind,
            "language": case.language,
            "question": case.question,
            "after": list(case.after),
            "gold": list(case.answers),
            "answerable": case.answerable,
            "answer": turn.answer if turn is not None else None,
            "model": turn.model if turn is not None else None,
            "right": outcome.right,
            "refused": outcome.refused,
            "escalated": outcome.escalated,
            "error": outcome.error,
            "scores": self.scores.to_dict() if self.scores is not None else None,
            "grades": self.grades.to_dict() if self.grades is not None else None,
            "read": [hit.passage.place for hit in evidence_of(outcome)] if turn is not None else [],
            "ttft_ms": round(outcome.ttft_ms, 1) if turn is not None else None,
            "total_ms": round(outcome.total_ms, 1) if turn is not None else None,
        }


@dataclass
class Report:
    """A run over a data set; filled while it is measured, and true at any time."""

    mode: Mode
    settings: Settings
    dataset: str = ""
    asked: int = 0
    """How many questions are to be asked."""
    slm: str = ""
    llm: str = ""
    rows: list[Row] = field(default_factory=list)
    compared: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same figures of each single model, and of a random mix of both with as many calls; empty unless asked for."""
    judge: dict[str, Any] | None = None
    """Who it was, as `judge.Judge.to_dict` tells; None where nobody named one."""
    ragas: ragas_scores.Scores | None = None
    complete: bool = False
    """Nothing is left to be measured."""

    @property
    def outcomes(self) -> list[Outcome]:
        return [row.outcome for row in self.rows]

    @property
    def calibrated(self) -> bool:
        return any(
            o.turn is not None and o.turn.verdict is not None and o.turn.verdict.calibrated for o in self.outcomes
        )

    @property
    def failed(self) -> int:
        """Questions that got an error for an answer; they count as wrong."""
        return sum(bool(outcome.error) for outcome in self.outcomes)

    @property
    def metrics(self) -> dict[str, float]:
        """All figures, those without a meaning left out."""
        outcomes = self.outcomes
        if not outcomes:
            return {}
        found = figures(outcomes)
        singles = [known for name, known in self.compared.items() if name != RANDOM_MIX]
        line = at_equal_compute(found, singles) if singles and "right_answerable" in found else None
        if line is not None:
            found["single_models_right_answerable_at_equal_compute"] = line
        for of in self.parts.values():
            found |= {f"right_{part}": known["right"] for part, known in of.items()}
        found |= scored(self.rows)
        found |= evaluation.context_of(outcomes, self.settings)
        if self.ragas is not None:
            found |= self.ragas.means
        return {name: value for name, value in found.items() if value == value}

    @property
    def parts(self) -> dict[str, dict[str, dict[str, float]]]:
        """By kind and by language, where the set tells them: {"kind": {"lookup": {"questions": 30, "right": 0.6, ...}}}."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for what, of in datasets.parts([row.outcome.case for row in self.rows]).items():
            for part, places in of.items():
                rows = [self.rows[place] for place in places]
                known = {
                    "questions": float(len(rows)),
                    "right": _share(row.outcome.right for row in rows),
                    "refused": _share(row.outcome.refused for row in rows),
                    "llm_calls": _share(row.outcome.escalated for row in rows),
                    **{name: value for name, value in scored(rows).items() if name in RUBRIC},
                }
                found.setdefault(what, {})[part] = known
        return found

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95%, of the shares."""
        found = intervals(self.outcomes)
        if self.mode != "auto":
            found.pop("llm_calls", None)  # nothing was decided
        for of in datasets.parts([row.outcome.case for row in self.rows]).values():
            for part, places in of.items():
                right = sum(self.rows[place].outcome.right for place in places)
                found[f"right_{part}"] = interval(right, len(places))
        return found

    def to_dict(self) -> dict[str, Any]:
        told = {}
        if self.ragas is not None:
            told = self.ragas.by_question
        return {
            "metrics": _rounded(self.metrics),
            "intervals": {name: [round(low, 4), round(high, 4)] for name, (low, high) in self.intervals.items()},
            "parts": {what: {part: _rounded(known) for part, known in of.items()} for what, of in self.parts.items()},
            "compared": {name: _rounded(known) for name, known in self.compared.items()},
            "dataset": self.dataset,
            "mode": self.mode,
            "slm": self.slm,
            "llm": self.llm,
            "calibrated": self.calibrated,
            "failed": self.failed,
            "asked": self.asked,
            "complete": self.complete,
            "rubric": {"by": "rules", "scale": [rubric.LEAST, rubric.MOST]},
            "judge": self.judge,
            "ragas": self.ragas.to_dict() if self.ragas is not None else None,
            "questions": [
                {**row.to_dict(), **({"ragas": told[row.outcome.case.id]} if row.outcome.case.id in told else {})}
                for row in self.rows
            ],
            "version": __version__,
            "machine": machine(),
        }


def scored(rows: Sequence[Row]) -> dict[str, float]:
    """Means of the rubric's scores and of the judge's grades over the questions that were answered, and how far each can
    be believed: AUROC of factuality for right answers among answerable questions, and the rank correlation of judge and
    rules. Those without a meaning are left out."""
    answered = [row for row in rows if row.answered]
    found: dict[str, float] = {}
    for name in DIMENSIONS:
        held = [value for row in answered if row.scores is not None if (value := getattr(row.scores, name)) is not None]
        if held:
            found[f"rubric_{name}"] = _mean(held)
    graded = [(row, row.grades) for row in answered if row.grades is not None]
    for name in DIMENSIONS:
        if graded:
            found[f"grade_{name}"] = _mean(getattr(grades, name) for _, grades in graded)
        pairs = [
            (value, getattr(grades, name))
            for row, grades in graded
            if row.scores is not None and (value := getattr(row.scores, name)) is not None
        ]
        agreement = rank_correlation([one for one, _ in pairs], [other for _, other in pairs])
        if agreement is not None:
            found[f"grade_agreement_{name}"] = agreement
    asked = sum(row.asked for row in answered)
    if asked:
        found["grade_unscored"] = 1 - len(graded) / asked
    for who, values in (
        ("rubric", [(row, row.scores.factuality) for row in answered if row.scores is not None]),
        ("grade", [(row, float(grades.factuality)) for row, grades in graded]),
    ):
        told = [(row.outcome.right, v) for row, v in values if v is not None and row.outcome.case.answerable]
        auroc = curves.auroc([value for _, value in told], [right for right, _ in told])
        if auroc == auroc:
            found[f"{who}_factuality_auroc"] = auroc
    return found


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares in [0, 1], times in milliseconds, tokens and compute seconds per question; those without a meaning are left
    out (an AUROC where all are right)."""
    yes = [o for o in outcomes if o.case.answerable]
    no = [o for o in outcomes if not o.case.answerable]
    found: dict[str, float] = {
        "questions": len(outcomes),
        "answerable": len(yes),
        "right": _share(o.right for o in outcomes),
        "right_answerable": _share(o.right for o in yes),
        "answered_answerable": _share(not o.refused for o in yes),
        "refused_unanswerable": _share(o.refused for o in no),
        "llm_calls": _share(o.escalated for o in outcomes),
        "input_tokens": _mean(sum(call.input_tokens for call in o.calls) for o in outcomes),
        "output_tokens": _mean(sum(call.output_tokens for call in o.calls) for o in outcomes),
        "llm_input_tokens": _mean(sum(c.input_tokens for c in o.calls if c.leg == "llm") for o in outcomes),
        "llm_output_tokens": _mean(sum(c.output_tokens for c in o.calls if c.leg == "llm") for o in outcomes),
        "compute_s": _mean(o.compute_s for o in outcomes),
        "own_ms_p50": float(np.median([o.own_ms for o in outcomes])),
    }
    spent = sum(o.compute_s for o in outcomes)
    if spent:
        found["right_per_compute_s"] = sum(o.right for o in outcomes) / spent
        found["right_answerable_per_compute_s"] = sum(o.right for o in yes) / (sum(o.compute_s for o in yes) or np.nan)
    for name, times in (("ttft_ms", [o.ttft_ms for o in outcomes]), ("total_ms", [o.total_ms for o in outcomes])):
        found |= {f"{name}_p50": float(np.percentile(times, 50)), f"{name}_p95": float(np.percentile(times, 95))}
    found |= _judged(outcomes)
    return {name: value for name, value in found.items() if value == value}


def intervals(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """95%, of the shares."""
    yes = [o for o in outcomes if o.case.answerable]
    kinds = {
        "right": [o.right for o in outcomes],
        "right_answerable": [o.right for o in yes],
        "refused_unanswerable": [o.refused for o in outcomes if not o.case.answerable],
        "answered_answerable": [not o.refused for o in yes],
        "llm_calls": [o.escalated for o in outcomes],
    }
    return {name: interval(sum(values), len(values)) for name, values in kinds.items() if values}


def interval(count: int, of: int) -> tuple[float, float]:
    """95% interval of the share `count / of`, Wilson's (1927): it holds where questions are few or all alike, too."""
    share, spread = count / of, Z95**2 / of
    middle = (share + spread / 2) / (1 + spread)
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    # Rounding must not leave the share outside.
    return min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))


def random_mix(small: Sequence[Outcome], large: Sequence[Outcome], calls: float) -> dict[str, float]:
    """What a coin gives that sends this share of the questions to the larger model, without a draft: the expectation."""
    own, other = figures(small), figures(large)
    mixed: dict[str, float] = {
        name: (1 - calls) * own[name] + calls * other[name] for name in MIXED if name in own and name in other
    }
    if mixed.get("compute_s"):
        mixed["right_per_compute_s"] = mixed["right"] / mixed["compute_s"]
    return {"llm_calls": calls, **mixed}


def at_equal_compute(auto: Mapping[str, float], points: Sequence[Mapping[str, float]]) -> float | None:
    """`right_answerable` of the best mix of single models that computes as long as Auto does, on the line between two of
    them; None when Auto computes less than each of them."""
    spent = auto["compute_s"]
    best = None
    for one in points:
        for other in points:
            if one["compute_s"] <= spent:
                share = 0.0
                if other["compute_s"] > spent:
                    share = (spent - one["compute_s"]) / (other["compute_s"] - one["compute_s"])
                between = (1 - share) * one["right_answerable"] + share * other["right_answerable"]
                best = between if best is None else max(best, between)
    return best


def judging_ms(trace: Trace) -> float:
    """All that one turn spent on judging, milliseconds."""
    return sum(span.duration_ms or 0.0 for span in trace.spans if span.name == "judge")


def _judged(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of the turns in which a small model was judged."""
    judged = [
        (o, o.turn)
        for o in outcomes
        if o.turn is not None and o.turn.verdict is not None and any(c.leg == "slm" for c in o.calls)
    ]
    if not judged:
        return {}
    found: dict[str, float] = {}
    times = [judging_ms(turn.trace) for _, turn in judged]
    found |= {"judge_ms_p50": float(np.percentile(times, 50)), "judge_ms_p99": float(np.percentile(times, 99))}
    given_up = [next(c for c in o.calls if c.leg == "slm") for o, _ in judged if o.escalated]
    skipped = sum(o.turn is not None and o.escalated and not any(c.leg == "slm" for c in o.calls) for o in outcomes)
    if given_up or skipped:
        early = skipped + sum(call.output_tokens <= EARLY_TOKENS for call in given_up)
        found["escalated_early"] = early / (len(given_up) + skipped)
    kept = [o for o, turn in judged if turn.verdict is not None and turn.verdict.accepted and not o.refused]
    if kept:
        found["kept"] = len(kept) / len(outcomes)
        found["kept_right"] = _share(o.right for o in kept)
        answerable = [o for o in kept if o.case.answerable]
        if answerable:
            found["kept_right_answerable"] = _share(o.right for o in answerable)
    return found


def _share(values: Any) -> float:
    return _mean(float(value) for value in values)


def _mean(values: Any) -> float:
    held = list(values)
    return statistics.fmean(held) if held else float("nan")


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
