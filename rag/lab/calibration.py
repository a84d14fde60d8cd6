"""Fitting a pair of models: from what both wrote to a `Calibration`, and every policy replayed from the recordings.

Knows features, labels and goals; asks nothing itself (`answers` does) and draws nothing (`pictures` does). Everything that
is reported was measured on questions of articles that the fit had not seen: one article is left out, the rest is fitted,
and the turns of the article are replayed with that fit through the whole cascade.
"""

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rag.errors import UserError
from rag.lab import curves, logistic
from rag.lab.answers import Outcome, holds_gold
from rag.lab.dataset import Case
from rag.settings import Settings
from rag.turn import calibration, confidence
from rag.turn.calibration import Calibration, Line, Scorer
from rag.turn.confidence import Grounds

Features = Mapping[str, float]

# Ten signals and no more, chosen by grouped cross-validation on both embedded small models.
WITHOUT_LOGPROBS = (
    "unaligned", "better_aligned", "apart", "unsupported", "wordy", "broken", "wrong_kind", "rival_hit", "weak_hit",
)  # fmt: skip
WITH_LOGPROBS = (*WITHOUT_LOGPROBS, "rivalled")
BEFORE = ("uncovered", "missing", "weak_hit", "rival_hit")
EARLY = WITH_LOGPROBS
MOMENTS = (0, 1, 8, 16, 32)
"""Tokens after which a draft may be given up."""
FALSE_EARLY = 0.03
"""Of the drafts that are given up, the most that the whole rule would have kept."""
REFUSED = 0.13
"""Of the answerable questions, the most that the larger model's own Yes or No may refuse."""
DEFAULT_QUALITY = 0.95
FEWEST = 40
"""Questions of each kind of answer, right and wrong, below which nothing is fitted."""


@dataclass(frozen=True)
class Written:
    """What one model made of one question."""

    right: bool
    refused: bool
    features: Features = field(default_factory=dict)
    before: Features = field(default_factory=dict)
    early: Mapping[int, Features] = field(default_factory=dict)
    ruled_out: bool = False
    """A hard rule rejects it, whatever its score."""
    lead: float | None = None
    compute_s: float = 0.0


@dataclass(frozen=True)
class Row:
    """One question and what both models made of it; None where a model was not asked."""

    case: Case
    slm: Written
    llm: Written | None


@dataclass(frozen=True)
class Goal:
    """Where the line for accepting a draft is drawn. Exactly one is given; without any, `quality` is 0.95."""

    quality: float | None = None
    """As few calls as leave this share of the larger model's right answers."""
    escalation_rate: float | None = None
    risk: float | None = None
    """Of all questions, the most that are answered by the small model and wrong."""
    call_cost: float | None = None
    """What a call to the larger model costs, in right answers."""

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise UserError(f"Give one goal, not {len(given)}: {', '.join('--' + n.replace('_', '-') for n in given)}.")
        for name, value in given.items():
            if not 0 <= value <= 1:
                raise UserError(f"--{name.replace('_', '-')} {value} is no share. Give a number from 0 to 1.")

    def __str__(self) -> str:
        if self.escalation_rate is not None:
            return f"{self.escalation_rate:.0%} of the questions go to the larger model"
        if self.risk is not None:
            return f"at most {self.risk:.0%} of the questions are answered wrong by the small model"
        if self.call_cost is not None:
            return f"a call to the larger model costs {self.call_cost:g} right answers"
        quality = DEFAULT_QUALITY if self.quality is None else self.quality
        return f"{quality:.0%} of the larger model's right answers, with as few calls as that takes"


def written(outcome: Outcome, idf: confidence.Idf, *, min_words: int) -> Written:
    """What a single model made of a question: the outcome of a turn in the mode `slm` or `llm`."""
    turn = outcome.turn
    compute_s = outcome.compute_s
    if turn is None or not turn.drafts:
        return Written(False, outcome.refused, compute_s=compute_s)
    draft = turn.drafts[-1]
    right = outcome.case.answerable and holds_gold(draft.text, outcome.case.answers)
    if draft.leg == "llm":
        lead = turn.check.lead if turn.check is not None else None
        return Written(right and not outcome.refused, outcome.refused, lead=lead, compute_s=compute_s)
    grounds = Grounds(
        turn.question, turn.query, turn.hits, turn.prompts["slm"].evidence, idf, most_idf=idf("")
    )  # fmt: skip
    early = {}
    for after in MOMENTS[1:]:
        if len(draft.tokens) >= after:
            tokens = draft.tokens[:after]
            text = "".join(token.text for token in tokens)
            early[after] = confidence.features(confidence.measure(text, tokens, grounds, cut_off=False))
    verdict = turn.verdict
    assert verdict is not None, "a small model's whole draft is judged"
    assert verdict.signals is not None
    return Written(
        right,
        outcome.refused,
        confidence.features(verdict.signals),
        confidence.before(grounds),
        early,
        ruled_out=confidence.rule(verdict.signals, min_words=min_words) is not None,
        compute_s=compute_s,
    )


def from_labels(labels: Sequence[Mapping[str, Any]], slm: str, *, min_words: int) -> list[Row]:
    """Rows of what people said of the small model's answers in the chat: a thumb up is right; a thumb down, or the larger
    model asked after it, is wrong."""
    rows: list[Row] = []
    for label in labels:
        verdict = label.get("verdict") or {}
        signals = {name: value for name, value in (verdict.get("signals") or {}).items() if name != "calibrated"}
        if label.get("slm") != slm or label.get("escalated") or label.get("refused") or not signals:
            continue
        try:
            measured = confidence.Signals(**signals)
        except TypeError:
            continue  # kept by another version, which measured other things
        case = Case(f"chat:{len(rows)}", str(label["question"]), frozenset({"chat:0"}))
        ruled_out = confidence.rule(measured, min_words=min_words) is not None
        made = Written(label["kind"] == "good", False, confidence.features(measured), ruled_out=ruled_out)
        rows.append(Row(case, made, None))
    return rows


def fit(rows: Sequence[Row], goal: Goal, *, slm: str, llm: str, settings: Settings) -> Calibration:
    """Scorers and lines for one pair. UserError where there is too little to fit to."""
    right = np.array([float(row.slm.right) for row in rows])
    few = min(right.sum(), len(right) - right.sum())
    if few < FEWEST:
        raise UserError(
            f"Of {len(rows)} answers of {slm} only {few:.0f} are {'right' if right.sum() == few else 'wrong'}; at least"
            f" {FEWEST} of each kind are needed. Take more questions (--limit)."
        )
    lines: dict[str, Line] = {}
    early: dict[int, Line] = {}
    for name, features in (("right", WITH_LOGPROBS), ("right_without_logprobs", WITHOUT_LOGPROBS)):
        have = [row for row in rows if _held(row.slm.features, features)]
        if len(have) < len(rows) / 2:
            continue  # this server gives no logprobs
        scorer, scores = _fitted([row.slm.features for row in have], features, have)
        # What breaks a hard rule is given away whatever its score.
        ranked = np.where([row.slm.ruled_out for row in have], -1.0, scores)
        lines[name] = Line(scorer, _line(goal, ranked, have))
        if name == "right":
            early = _early(have, ranked >= lines[name].at)
    if not lines:
        raise UserError(f"Hardly any answer of {slm} can be used: most are empty.")
    return Calibration(
        key=calibration.key(slm, llm, settings),
        slm=slm,
        llm=llm,
        right=lines.get("right", lines["right_without_logprobs"]),
        right_without_logprobs=lines["right_without_logprobs"],
        early=early,
        check=_check(rows),
        facts={"goal": str(goal), "questions": len(rows), "made": datetime.date.today().isoformat()},
    )


def unseen_scores(rows: Sequence[Row], names: Sequence[str]) -> NDArray[np.float64]:
    """The probability for each row that a fit gives which has seen no question of its document."""
    return _fitted([row.slm.features for row in rows], names, rows)[1]


def matrix(rows: Sequence[Features], names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[row[name] for name in names] for row in rows], float).reshape(len(rows), len(names))


def _held(features: Features, names: Sequence[str]) -> bool:
    return all(name in features for name in names)


def _fitted(
    features: Sequence[Features], names: Sequence[str], rows: Sequence[Row], label: NDArray[np.float64] | None = None
) -> tuple[Scorer, NDArray[np.float64]]:
    """A scorer, and for each row what fits say that have not seen its document. The label is: right."""
    of = None
    if label is None:
        # What makes an answer right is learnt where there is one: no signal tells an answer that is missing from the
        # documents (AUROC at most .6), so those questions would only blur the weights. How probable a right answer is,
        # they do tell: the scaling is by all.
        of = np.array([row.case.answerable for row in rows])
        label = np.array([float(row.slm.right) for row in rows])
    found, scores = logistic.calibrated(matrix(features, names), label, [row.case.group for row in rows], of=of)
    weights = {name: round(float(weight), 5) for name, weight in zip(names, found.weights, strict=True)}
    means = matrix(features, names).mean(axis=0)
    usual = {name: round(float(mean), 3) for name, mean in zip(names, means, strict=True)}
    return Scorer(weights, round(found.bias, 5), usual), scores


def crc(scores: NDArray[np.float64], wrong: NDArray[np.float64], alpha: float) -> float:
    """Conformal risk control (Angelopoulos et al. 2024): the lowest line at which the share of all n questions that is kept
    and wrong, n / (n + 1) of it plus 1 / (n + 1), is at most `alpha`; above 1 when none is."""
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    risk = (np.cumsum(wrong[order]) + 1) / (n + 1)
    # A line lies between two scores: equal ones are kept together.
    ends = np.append(np.diff(scores[order]) != 0, True)
    held = np.flatnonzero((risk <= alpha) & ends)
    if not len(held):
        return math.nextafter(1.0, 2.0)
    return float(scores[order[held[-1]]])


def feasible(rows: Sequence[Row], risk: float) -> str:
    """What a target risk asks for, told before it is fitted: even a perfect judge must give away so many drafts."""
    wrong = float(np.mean([not row.slm.right for row in rows]))
    told = f"The small model is wrong in {wrong:.0%} of its answers"
    if wrong <= risk:
        return f"{told}: a risk of {risk:.0%} needs no escalation."
    return (
        f"{told}: for a risk of {risk:.0%}, at least {wrong - risk:.0%} of the questions must go to the larger model, even"
        " with a perfect judge."
    )


def _line(goal: Goal, scores: NDArray[np.float64], rows: Sequence[Row]) -> float:
    """The lowest score that is accepted; above 1 where none may be."""
    ranked = np.sort(scores)
    none = math.nextafter(1.0, 2.0)
    if goal.escalation_rate is not None:
        calls = math.ceil(goal.escalation_rate * len(rows))
        return float(max(0.0, ranked[calls])) if calls < len(rows) else none
    if goal.risk is not None:
        return max(0.0, crc(scores, np.array([float(not row.slm.right) for row in rows]), goal.risk))
    both = np.array([row.llm is not None and row.case.answerable for row in rows])
    if both.sum() < 2 * FEWEST:
        raise UserError(
            f"The larger model answered {both.sum():.0f} answerable questions, at least {2 * FEWEST} are needed."
            " Let it answer more (--llm-limit), or give --risk or --escalation-rate."
        )
    small = np.array([float(row.slm.right) for row in rows])[both]
    large = np.array([float(row.llm is not None and row.llm.right) for row in rows])[both]
    calls_made, quality = curves.quality_by_calls(-scores[both], small, large)
    if goal.call_cost is not None:
        best = int(np.argmax(quality - goal.call_cost * calls_made))
    else:
        wanted = DEFAULT_QUALITY if goal.quality is None else goal.quality
        best = int(np.argmax(quality >= wanted * quality[-1] - 1e-12))
    paired = np.sort(scores[both])
    # So many calls go to the larger model: the line lies at the lowest score that does not.
    return float(max(0.0, paired[best])) if best < len(paired) else none


def _early(rows: Sequence[Row], accepted: NDArray[np.bool_]) -> dict[int, Line]:
    """At each moment, a line under which hardly any draft would have been accepted at its end."""
    lines: dict[int, Line] = {}
    going = np.ones(len(rows), bool)
    for after in MOMENTS:
        names = BEFORE if after == 0 else EARLY
        seen = [row.slm.before if after == 0 else row.slm.early.get(after, {}) for row in rows]
        have = np.flatnonzero(going & [_held(features, names) for features in seen])
        label = accepted[have].astype(float)
        if len(have) < 2 * FEWEST or label.min() == label.max():
            continue
        scorer, scores = _fitted([seen[place] for place in have], names, [rows[int(place)] for place in have], label)
        at = _least(scores, label)
        if at is None:
            continue
        lines[after] = Line(scorer, at)
        going[have[scores < at]] = False
    return lines


def _least(scores: NDArray[np.float64], label: NDArray[np.float64]) -> float | None:
    """The highest line with at most FALSE_EARLY of what lies below it accepted at its end; None when there is none."""
    order = np.argsort(scores, kind="stable")
    false = np.cumsum(label[order]) / np.arange(1, len(order) + 1)
    held = np.flatnonzero((false <= FALSE_EARLY) & np.append(np.diff(scores[order]) != 0, True))
    # A handful at the bottom of the ranking proves nothing.
    if not len(held) or held[-1] + 1 < 1 / FALSE_EARLY or held[-1] + 1 == len(order):
        return None
    return float(scores[order[held[-1] + 1]])


def _check(rows: Sequence[Row]) -> float | None:
    leads = sorted(row.llm.lead for row in rows if row.llm and row.llm.lead is not None and row.case.answerable)
    if len(leads) < 2 * FEWEST:
        return None
    return round(float(np.quantile(leads, REFUSED)), 4)
