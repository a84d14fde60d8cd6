"""How good answers are and what they cost: figures of a run over a data set, and what they are compared with.

Knows outcomes and how to count them: answerable and unanswerable questions apart, with 95% bootstrap intervals. Asking is
`answers`' work. "Right" means that a gold answer stands in the answer, or, where there is none, that it is a refusal.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Column, Table

from rag import __version__, terminal
from rag.lab import curves
from rag.lab.answers import Outcome
from rag.lab.machine import machine
from rag.settings import Mode
from rag.trace import Trace

EARLY_TOKENS = 16
"""An escalation is early when its draft had no more tokens when it was decided: given up, or ended by then."""
MIXED: tuple[str, ...] = (
    "right",
    "right_answerable",
    "refused_unanswerable",
    "answered_answerable",
    "compute_s",
)


@dataclass(frozen=True)
class Report:
    """Figures, and what they were measured on."""

    dataset: str
    mode: Mode
    slm: str
    llm: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    """95%, of the shares."""
    compared: Mapping[str, Mapping[str, float]]
    """The same figures of each single model, and of a random mix of both with as many calls; empty unless asked for."""
    calibrated: bool
    failed: int
    """Questions that got an error for an answer; they count as wrong."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": _rounded(self.metrics),
            "intervals": {name: [round(low, 4), round(high, 4)] for name, (low, high) in self.intervals.items()},
            "compared": {name: _rounded(figures) for name, figures in self.compared.items()},
            "dataset": self.dataset,
            "mode": self.mode,
            "slm": self.slm,
            "llm": self.llm,
            "calibrated": self.calibrated,
            "failed": self.failed,
            "version": __version__,
            "machine": machine(),
        }


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
    kinds: dict[str, tuple[list[float], bool | None]] = {
        "right": ([o.right for o in outcomes], None),
        "right_answerable": ([o.right for o in outcomes], True),
        "refused_unanswerable": ([o.refused for o in outcomes], False),
        "answered_answerable": ([not o.refused for o in outcomes], True),
        "llm_calls": ([o.escalated for o in outcomes], None),
    }
    found = {}
    for name, (values, answerable) in kinds.items():
        chosen = [
            (float(value), o.case.group)
            for value, o in zip(values, outcomes, strict=True)
            if answerable is None or o.case.answerable == answerable
        ]
        if chosen:
            numbers = np.array([value for value, _ in chosen])
            found[name] = curves.interval(_mean_of(numbers), [group for _, group in chosen])
    return found


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


def show(report: Report) -> None:
    """The figures as a table."""
    title = f"{report.dataset}, mode {report.mode}: {report.slm} and {report.llm}" + (
        "" if report.calibrated else " (not calibrated)"
    )
    # A name that is cut is no name: a narrow window shortens the models' names, not the figures'.
    table = Table(Column("what", no_wrap=True, min_width=32), report.mode, "95%", *report.compared, title=title)
    for name, value in report.metrics.items():
        low_high = report.intervals.get(name)
        table.add_row(
            name,
            _shown(value),
            f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "",
            *(_shown(other[name]) if name in other else "" for other in report.compared.values()),
        )
    terminal.out.print(table)
    if report.failed:
        terminal.notices.print(f"{report.failed} questions got an error instead of an answer; they count as wrong.")


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


def _mean_of(numbers: Any) -> Callable[[Any], float]:
    return lambda rows: float(numbers[rows].mean())


def _share(values: Any) -> float:
    return _mean(float(value) for value in values)


def _mean(values: Any) -> float:
    held = list(values)
    return statistics.fmean(held) if held else float("nan")


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


def _shown(value: float) -> str:
    if value >= 1 and value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.3f}" if abs(value) < 10 else f"{value:,.0f}"
