"""Rankings, calibration and the price of quality, each against a count by hand."""

import itertools
import math

import numpy as np
import pytest

from rag.lab import curves

SMALL = np.array([1, 0, 0, 1, 0, 0])
LARGE = np.array([1, 1, 1, 0, 0, 1])


def by_hand(scores: list[float], positive: list[bool]) -> float:
    above = [score for score, yes in zip(scores, positive, strict=True) if yes]
    below = [score for score, yes in zip(scores, positive, strict=True) if not yes]
    pairs = list(itertools.product(above, below))
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)


@pytest.mark.parametrize("seed", range(8))
def test_auroc_is_the_share_of_pairs_in_the_right_order_with_ties_as_halves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4 + seed, 40) / 3
    positive = np.r_[True, False, rng.random(38) < 0.3]
    assert curves.auroc(scores, positive) == pytest.approx(by_hand(scores.tolist(), positive.tolist()))


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [([1, 2, 3, 4], [0, 0, 1, 1], 1.0), ([1, 2, 3, 4], [1, 1, 0, 0], 0.0), ([5, 5, 5], [1, 0, 1], 0.5)],
)
def test_auroc_of_orders_that_are_clear(scores: list[float], positive: list[int], expected: float) -> None:
    assert curves.auroc(scores, positive) == expected


@pytest.mark.parametrize("positive", [[], [1, 1], [0, 0]])
def test_auroc_of_one_kind_has_no_meaning(positive: list[int]) -> None:
    assert math.isnan(curves.auroc(positive, positive))


def test_a_score_that_keeps_its_word_has_hardly_any_calibration_error_and_a_boastful_one_its_excess() -> None:
    rng = np.random.default_rng(1)
    so = rng.uniform(0.05, 0.75, 20_000)
    right = rng.random(20_000) < so
    assert curves.calibration_error(so, right) < 0.02
    assert curves.calibration_error(so + 0.2, right) == pytest.approx(0.2, abs=0.02)


def test_calibration_error_by_hand() -> None:
    said, right = [0.9, 0.1, 0.8, 0.2], [1, 0, 0, 1]
    # Two bins: .1 and .2 of which half are right, .8 and .9 of which half are right.
    assert curves.calibration_error(said, right, bins=2) == pytest.approx(0.35)
    assert curves.reliability(said, right, bins=2) == [(pytest.approx(0.15), 0.5, 2), (pytest.approx(0.85), 0.5, 2)]


def test_calibration_error_of_nothing_has_no_meaning() -> None:
    assert math.isnan(curves.calibration_error([], []))


def test_calibration_error_does_not_depend_on_the_order_of_the_rows() -> None:
    said, right = np.full(100, 0.7), np.repeat([1, 0], [70, 30])
    mixed = np.random.default_rng(1).permutation(100)
    assert curves.calibration_error(said, right) == pytest.approx(curves.calibration_error(said, right[mixed]))


def test_the_risk_of_keeping_all_is_the_overall_error() -> None:
    rng = np.random.default_rng(2)
    scores, right = rng.random(50), rng.integers(0, 2, 50)
    kept, risk = curves.risk_coverage(scores, right)
    assert (kept[-1], risk[-1]) == (1, pytest.approx(1 - right.mean()))
    assert risk[0] == 1 - right[np.argmax(scores)]
    assert (np.diff(kept) > 0).all()


def test_a_perfect_score_keeps_no_wrong_answer_before_the_last_right_one() -> None:
    kept, risk = curves.risk_coverage([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0])
    assert kept.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk == pytest.approx([0, 0, 1 / 3, 1 / 2])


def test_quality_goes_from_the_small_models_to_the_larger_ones() -> None:
    calls, quality = curves.quality_by_calls([0.1, 0.9, 0.8, 0.0, 0.5, 0.7], SMALL, LARGE)
    assert calls == pytest.approx(np.arange(7) / 6)
    assert quality * 6 == pytest.approx([2, 3, 4, 5, 5, 5, 4])


def test_apgr_of_a_random_order_is_a_half() -> None:
    rng = np.random.default_rng(3)
    small, large = rng.integers(0, 2, 400), np.ones(400)
    assert np.mean([curves.apgr(rng.random(400), small, large) for _ in range(200)]) == pytest.approx(0.5, abs=0.01)


def test_apgr_is_largest_for_the_order_of_an_oracle() -> None:
    every = [curves.apgr(np.array(order), SMALL, LARGE) for order in itertools.permutations(range(6))]
    assert curves.apgr(LARGE - SMALL, SMALL, LARGE) == pytest.approx(max(every))
    assert curves.apgr(SMALL - LARGE, SMALL, LARGE) == pytest.approx(min(every))


@pytest.mark.parametrize(("share", "calls"), [(0, 0), (0.5, 1 / 6), (1, 2 / 6)])
def test_calls_are_counted_until_so_much_of_the_gap_is_recovered(share: float, calls: float) -> None:
    assert curves.calls_for(share, LARGE - SMALL, SMALL, LARGE) == pytest.approx(calls)


def test_calls_in_the_worst_order_are_nearly_all() -> None:
    assert curves.calls_for(0.5, SMALL - LARGE, SMALL, LARGE) == pytest.approx(5 / 6)


def test_where_the_larger_model_is_not_better_there_is_no_gap_to_recover() -> None:
    assert math.isnan(curves.apgr(LARGE, SMALL, SMALL))
    assert math.isnan(curves.calls_for(0.5, LARGE, LARGE, SMALL))


def test_the_interval_holds_the_figure_and_is_the_same_each_time() -> None:
    values = np.random.default_rng(4).random(200)
    groups = [str(number % 5) for number in range(200)]
    low, high = curves.interval(lambda rows: float(values[rows].mean()), groups)
    assert low < values.mean() < high
    # Four standard errors, about.
    assert high - low == pytest.approx(4 * values.std() / math.sqrt(200), rel=0.15)
    assert curves.interval(lambda rows: float(values[rows].mean()), groups) == (low, high)


def test_rows_are_drawn_within_their_groups() -> None:
    groups = ["a"] * 30 + ["b"] * 3
    names = np.array(groups)
    assert curves.interval(lambda rows: float((names[rows] == "b").sum()), groups, resamples=20) == (3, 3)


def test_draws_without_a_meaning_are_left_out_and_nothing_is_left_of_none() -> None:
    positive = np.array([1, 0])
    assert curves.interval(lambda rows: curves.auroc([2, 1], positive[rows]), ["a", "b"], 10) == (1, 1)
    assert all(map(math.isnan, curves.interval(lambda rows: float("nan"), ["a", "b"], 10)))
