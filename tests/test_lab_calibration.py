"""A pair is fitted to what both models wrote: each goal draws the line that it asks for, and says when it cannot."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rag.errors import UserError
from rag.lab import calibration, curves, logistic
from rag.lab.calibration import (
    BEFORE,
    EARLY,
    FALSE_EARLY,
    FEWEST,
    MOMENTS,
    WITH_LOGPROBS,
    WITHOUT_LOGPROBS,
    Goal,
    Row,
    Written,
    crc,
    feasible,
    fit,
    from_labels,
    unseen_scores,
)
from rag.lab.dataset import Case
from rag.settings import Settings
from rag.turn.calibration import Calibration, key

from .test_confidence import GOOD, QUESTION, verdict_on

NAMES = tuple(sorted({*WITH_LOGPROBS, *WITHOUT_LOGPROBS, *BEFORE}))
NEEDS_LOGPROBS = {name for name in WITH_LOGPROBS if name not in WITHOUT_LOGPROBS}


def made(count: int = 600, *, right: float = 0.5, logprobs: bool = True, seed: int = 1) -> list[Row]:
    """Questions of six documents. One hidden difficulty moves all features, the more so the longer the draft is."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        ease = rng.normal()
        small = ease + rng.normal(scale=0.5) > -2.2 * (right - 0.5)
        large = rng.random() < (0.9 if small else 0.7)

        def seen(noise: float, names: Sequence[str] = NAMES, ease: float = ease) -> dict[str, float]:
            return {
                name: float(np.clip(0.5 - 0.2 * ease + noise * rng.normal(), 0, 1))
                for name in names
                if logprobs or name not in NEEDS_LOGPROBS
            }

        length = int(rng.integers(4, 40))
        early = {after: seen(0.3 - after / 200) for after in MOMENTS[1:] if after <= length}
        slm = Written(bool(small), False, seen(0.12), seen(0.5, BEFORE), early)
        case = Case(str(number), "?", frozenset({f"document {number % 6}:{number}"}), ("gold",))
        rows.append(Row(case, slm, Written(bool(large), False, lead=float(rng.normal(2)))))
    return rows


ROWS = made()


def fitted(rows: Sequence[Row], settings: Settings, **goal: float) -> Calibration:
    return fit(rows, Goal(**goal), slm="small", llm="large", settings=settings)


def kept(rows: Sequence[Row], settings: Settings, **goal: float) -> Any:
    """Which drafts stand, by scores of fits that have not seen their document."""
    return unseen_scores(rows, WITH_LOGPROBS) >= fitted(rows, settings, **goal).right.at


def rights(rows: Sequence[Row]) -> tuple[Any, Any]:
    return np.array([row.slm.right for row in rows]), np.array([bool(row.llm and row.llm.right) for row in rows])


def test_a_fit_says_of_what_it_is_and_ranks_answers(settings: Settings) -> None:
    found = fitted(ROWS, settings)
    assert (found.key, found.slm, found.llm) == (key("small", "large", settings), "small", "large")
    assert set(found.right.scorer.weights) == set(WITH_LOGPROBS)
    assert set(found.right_without_logprobs.scorer.weights) == set(WITHOUT_LOGPROBS)
    assert found.facts["questions"] == len(ROWS)
    small, _ = rights(ROWS)
    said = [found.right.scorer.probability(row.slm.features) for row in ROWS]
    assert curves.auroc(said, small) > 0.85
    assert curves.calibration_error(said, small) < 0.08


@pytest.mark.parametrize("quality", [0.85, 0.95, 1.0])
def test_a_goal_of_quality_makes_just_the_calls_that_reach_it(quality: float, settings: Settings) -> None:
    small, large = rights(ROWS)
    stands = kept(ROWS, settings, quality=quality)
    wanted = quality * large.mean()
    assert np.where(stands, small, large).mean() >= wanted - 1e-9
    # The draft of lowest score that went to the larger model could not have stood as well.
    scores = unseen_scores(ROWS, WITH_LOGPROBS)
    for fewer in range(int((~stands).sum())):
        called = np.zeros(len(ROWS), bool)
        called[np.argsort(scores, kind="stable")[:fewer]] = True
        assert np.where(called, large, small).mean() < wanted - 1e-9


def test_without_a_goal_it_is_95_percent_of_the_larger_models_quality(settings: Settings) -> None:
    assert fitted(ROWS, settings) == fitted(ROWS, settings, quality=0.95)


@pytest.mark.parametrize("rate", [0.0, 0.07, 0.25, 0.5, 1.0])
def test_a_goal_of_an_escalation_rate_gives_away_that_share(rate: float, settings: Settings) -> None:
    assert (~kept(ROWS, settings, escalation_rate=rate)).mean() == pytest.approx(rate, abs=1.01 / len(ROWS))


@pytest.mark.parametrize("risk", [0.02, 0.1, 0.3])
def test_a_goal_of_risk_keeps_at_most_that_share_of_wrong_answers(risk: float, settings: Settings) -> None:
    small, _ = rights(ROWS)
    stands = kept(ROWS, settings, risk=risk)
    assert (stands & ~small).mean() <= risk
    assert stands.any()
    # And no more is given away than that takes: one more wrong answer would be too many.
    assert ((stands & ~small).sum() + 2) / (len(ROWS) + 1) > risk


def test_a_risk_that_cannot_be_reached_keeps_nothing(settings: Settings) -> None:
    assert fitted(ROWS, settings, risk=0.0).right.at > 1


def test_a_goal_of_a_calls_cost_weighs_calls_against_right_answers(settings: Settings) -> None:
    small, large = rights(ROWS)
    calls_made = [(~kept(ROWS, settings, call_cost=cost)).mean() for cost in (0.0, 0.2, 0.4, 1.0)]
    assert calls_made == sorted(calls_made, reverse=True)
    assert calls_made[0] > calls_made[2]
    assert calls_made[-1] < 0.02
    stands = kept(ROWS, settings, call_cost=0.2)
    gained = np.where(stands, small, large).mean() - 0.2 * (~stands).mean()
    scores = unseen_scores(ROWS, WITH_LOGPROBS)
    for at in np.quantile(scores, np.linspace(0, 1, 50)):
        assert gained >= np.where(scores >= at, small, large).mean() - 0.2 * (scores < at).mean() - 1e-9


def test_what_breaks_a_rule_is_given_away_first(settings: Settings) -> None:
    ruled_out = {row.case.id for row in ROWS[::4]}
    rows = [replace(row, slm=replace(row.slm, ruled_out=row.case.id in ruled_out)) for row in ROWS]
    scores = unseen_scores(rows, WITH_LOGPROBS)
    line = fitted(rows, settings, escalation_rate=0.4).right.at
    given_away = [row.case.id in ruled_out or score < line for row, score in zip(rows, scores, strict=True)]
    assert np.mean(given_away) == pytest.approx(0.4, abs=1.01 / len(rows))


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"quality": 0.9, "risk": 0.1}, "--quality, --risk"),
        ({"escalation_rate": 0.1, "call_cost": 0.1}, "--escalation-rate, --call-cost"),
        ({"quality": 1.5}, "--quality 1.5"),
        ({"escalation_rate": -0.1}, "--escalation-rate -0.1"),
        ({"risk": math.nan}, "--risk nan"),
    ],
)
def test_two_goals_or_no_share_are_told(goal: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Goal(**goal)


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(), "95% of the larger"),
        (Goal(quality=0.8), "80% of the larger"),
        (Goal(quality=0.0), "0% of the larger"),
        (Goal(escalation_rate=0.0), "0% of the questions go"),
        (Goal(risk=0.05), "at most 5%"),
        (Goal(call_cost=0.1), "costs 0.1 right"),
    ],
)
def test_a_goal_says_what_it_asks_for(goal: Goal, said: str) -> None:
    assert said in str(goal)


@pytest.mark.parametrize(("label", "word"), [(True, "right"), (False, "wrong")])
def test_too_few_answers_of_one_kind_are_told_with_what_to_do(label: bool, word: str, settings: Settings) -> None:
    others = [row for row in ROWS if row.slm.right != label]
    few = [row for row in ROWS if row.slm.right == label][: FEWEST - 1]
    with pytest.raises(UserError, match=rf"only {FEWEST - 1} are {word}; at least {FEWEST}.*--limit"):
        fitted([*others, *few], settings, risk=0.5)


def test_too_few_answers_of_the_larger_model_are_told_with_what_to_do(settings: Settings) -> None:
    rows = [replace(row, llm=row.llm if number < 2 * FEWEST - 1 else None) for number, row in enumerate(ROWS)]
    with pytest.raises(UserError, match=rf"answered {2 * FEWEST - 1} answerable.*--llm-limit"):
        fitted(rows, settings)
    assert fitted(rows, settings, risk=0.2).right.at > 0, "a risk needs no answer of the larger model"


def test_answers_that_are_nearly_all_empty_are_told(settings: Settings) -> None:
    rows = [replace(row, slm=replace(row.slm, features={})) for row in ROWS]
    with pytest.raises(UserError, match="most are empty"):
        fitted(rows, settings, risk=0.2)


def test_a_server_without_logprobs_is_fitted_without(settings: Settings) -> None:
    found = fitted(made(logprobs=False), settings, escalation_rate=0.3)
    assert found.right == found.right_without_logprobs
    assert set(found.right.scorer.weights) == set(WITHOUT_LOGPROBS)
    assert not any(set(line.scorer.weights) & NEEDS_LOGPROBS for line in found.early.values())


def test_hardly_a_draft_that_would_be_kept_is_given_up(settings: Settings) -> None:
    found = fitted(ROWS, settings, escalation_rate=0.5)
    accepted = unseen_scores(ROWS, WITH_LOGPROBS) >= found.right.at
    going = np.ones(len(ROWS), bool)
    assert found.early, "these drafts can be told early"
    for after, line in sorted(found.early.items()):
        names = BEFORE if after == 0 else EARLY
        rows = np.array([n for n in np.flatnonzero(going) if after == 0 or after in ROWS[n].slm.early])
        seen = [ROWS[n].slm.before if after == 0 else ROWS[n].slm.early[after] for n in rows]
        label = accepted[rows].astype(float)
        logits = logistic.grouped(calibration.matrix(seen, names), label, [ROWS[n].case.group for n in rows])
        slope, offset = logistic.platt(logits, label)
        below = rows[logistic.sigmoid(slope * logits + offset) < line.at]
        assert len(below), f"a line after {after} that nothing is below"
        assert accepted[below].mean() <= FALSE_EARLY
        going[below] = False
    assert (~going).sum() > 0.2 * (~accepted).sum(), "a good part of what is given away is given up early"


def test_where_the_beginning_tells_nothing_nothing_is_given_up(settings: Settings) -> None:
    rng = np.random.default_rng(7)
    noise = [
        replace(
            row,
            slm=replace(
                row.slm,
                before={name: float(rng.random()) for name in BEFORE},
                early={after: {name: float(rng.random()) for name in EARLY} for after in row.slm.early},
            ),
        )
        for row in ROWS
    ]
    assert fitted(noise, settings, escalation_rate=0.5).early == {}


def test_the_line_for_yes_refuses_hardly_any_question_that_has_an_answer(settings: Settings) -> None:
    at = fitted(ROWS, settings).check
    assert at is not None
    leads = [row.llm.lead for row in ROWS if row.llm is not None and row.llm.lead is not None]
    assert np.mean([lead < at for lead in leads]) == pytest.approx(calibration.REFUSED, abs=0.01)
    silent = [replace(row, llm=replace(row.llm, lead=None)) for row in ROWS if row.llm]
    assert fitted(silent, settings).check is None


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5])
def test_the_controlled_risk_holds_with_ties_too(alpha: float) -> None:
    rng = np.random.default_rng(4)
    scores = rng.integers(0, 6, 200) / 5
    wrong = (rng.random(200) > scores).astype(float)
    for order in (np.argsort(wrong, kind="stable"), np.argsort(-wrong, kind="stable")):
        line = crc(scores[order], wrong[order], alpha)
        kept_and_wrong = float((wrong[order] * (scores[order] >= line)).mean())
        assert kept_and_wrong <= alpha


def test_the_controlled_risk_by_hand() -> None:
    scores, wrong = np.array([0.9, 0.8, 0.7, 0.6]), np.array([0.0, 0.0, 1.0, 0.0])
    assert crc(scores, wrong, 0.4) == 0.6
    assert crc(scores, wrong, 0.39) == 0.8
    assert crc(scores, wrong, 0.19) > 1


@pytest.mark.parametrize(
    ("risk", "told"), [(0.1, "at least 40% of the questions must go"), (0.5, "needs no escalation")]
)
def test_what_a_risk_asks_for_is_told_before(risk: float, told: str) -> None:
    rows = [replace(row, slm=replace(row.slm, right=number % 2 == 0)) for number, row in enumerate(ROWS)]
    assert "wrong in 50%" in feasible(rows, risk)
    assert told in feasible(rows, risk)


def label(kind: str = "good", text: str = GOOD, **named: Any) -> dict[str, Any]:
    return {
        "kind": kind, "question": QUESTION, "slm": "small", "escalated": False, "refused": False,
        "verdict": verdict_on(text).to_dict(),
    } | named  # fmt: skip


def test_what_people_said_of_answers_becomes_rows() -> None:
    rows = from_labels([label(), label("bad"), label("asked_larger"), label(text="Yes")], "small", min_words=3)
    assert [row.slm.right for row in rows] == [True, False, False, True]
    assert [row.slm.ruled_out for row in rows] == [False, False, False, True]
    assert len({row.case.id for row in rows}) == 4
    assert len({row.case.group for row in rows}) == 1
    assert set(rows[0].slm.features) >= {*WITH_LOGPROBS, *WITHOUT_LOGPROBS}
    assert all(row.llm is None for row in rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"slm": "another"}, {"escalated": True}, {"refused": True}, {"verdict": None},
        {"verdict": {"score": 0.1, "signals": {"calibrated": True}}},
        {"verdict": {"score": 0.1, "signals": {"words": 3, "of_another_version": 1.0}}},
    ],
    ids=str,
)  # fmt: skip
def test_labels_that_say_nothing_of_the_small_models_answer_are_left_out(changes: dict[str, Any]) -> None:
    assert from_labels([label(**changes)], "small", min_words=3) == []


def test_labels_are_fitted_beside_the_rows_of_a_data_set(settings: Settings) -> None:
    said = from_labels([label(), label("bad")] * 5, "small", min_words=3)
    found = fitted([*ROWS, *said], settings, risk=0.2)
    assert found.facts["questions"] == len(ROWS) + 10
    verdict = verdict_on(GOOD, calibration=found)
    assert verdict.calibrated
    assert verdict.threshold == found.right.at
