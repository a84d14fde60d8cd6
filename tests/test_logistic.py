"""A logistic regression that finds the weights that made the labels, and stays sane where labels tell little."""

from collections.abc import Callable

import numpy as np
import pytest

from rag.lab import curves, logistic
from rag.lab.logistic import Fit, Matrix, sigmoid

WEIGHTS = np.array([2.0, -1.0, 0.0])


def drawn(rows: int, weights: Matrix = WEIGHTS, bias: float = 0.5, seed: int = 1) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, len(weights)))
    return x, (rng.random(rows) < sigmoid(x @ weights + bias)).astype(float)


def test_the_weights_that_made_the_labels_are_found() -> None:
    found = logistic.fit(*drawn(20_000))
    assert found.weights == pytest.approx(WEIGHTS, abs=0.08)
    assert found.bias == pytest.approx(0.5, abs=0.08)


def test_weights_are_for_columns_as_they_come() -> None:
    x, right = drawn(20_000)
    found = logistic.fit(x * [10, 0.1, 1] + [3, -2, 0], right)
    assert found.weights == pytest.approx([0.2, -10, 0], abs=0.8)
    assert found.probabilities(x * [10, 0.1, 1] + [3, -2, 0]) == pytest.approx(logistic.fit(x, right).probabilities(x))


def test_it_minimises_the_penalised_loss() -> None:
    x, right = drawn(300)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    found = logistic.fit(x, right, l2=3.0)
    wrong = sigmoid(found.logits(x)) - right
    assert x.T @ wrong + 3.0 * found.weights == pytest.approx(np.zeros(3), abs=1e-4), "the gradient is nothing there"
    assert wrong.sum() == pytest.approx(0, abs=1e-4), "the bias is not penalised"


def test_a_stronger_penalty_leaves_smaller_weights() -> None:
    x, right = drawn(300)
    sizes = [float(np.abs(logistic.fit(x, right, l2=l2).weights).sum()) for l2 in (0.01, 3, 100, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.01


@pytest.mark.parametrize("l2", [logistic.L2, 1e-3])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e6])
def test_labels_that_can_be_told_apart_leave_weights_finite(l2: float, scale: float) -> None:
    x = np.r_[np.linspace(-2, -1, 30), np.linspace(1, 2, 30)][:, None] * scale
    right = np.repeat([0.0, 1.0], 30)
    found = logistic.fit(x, right, l2=l2)
    assert np.isfinite([*found.weights, found.bias]).all()
    assert curves.auroc(found.probabilities(x), right) == 1


def test_a_column_that_never_differs_has_no_weight() -> None:
    x, right = drawn(500)
    x[:, 1] = 7.0
    found = logistic.fit(x, right)
    assert found.weights[1] == 0
    assert found.weights[0] == pytest.approx(logistic.fit(x[:, [0, 2]], right).weights[0])


@pytest.mark.parametrize(("label", "least", "most"), [(1.0, 0.9, 1.0), (0.0, 0.0, 0.1)])
@pytest.mark.parametrize("how", [logistic.fit, lambda x, right: logistic.calibrated(x, right, ["a", "b"] * 10)[0]])
def test_with_one_kind_of_label_its_smoothed_share_is_told(
    how: Callable[[Matrix, Matrix], Fit], label: float, least: float, most: float
) -> None:
    found = how(drawn(20)[0], np.full(20, label))
    assert (found.weights == 0).all()
    assert least < found.probabilities(np.zeros((1, 3)))[0] < most


def test_without_rows_nothing_is_known() -> None:
    assert logistic.fit(np.zeros((0, 3)), np.zeros(0)).probabilities(np.ones((1, 3))) == pytest.approx([0.5])


def test_platt_mends_a_logit_that_is_too_sure() -> None:
    x, right = drawn(20_000)
    slope, offset = logistic.platt(3 * (x @ WEIGHTS + 0.5) + 2, right)
    assert slope == pytest.approx(1 / 3, abs=0.02)
    assert offset == pytest.approx(-2 / 3, abs=0.05)


def test_logits_that_rank_the_wrong_way_round_leave_the_share_that_is_right() -> None:
    x, right = drawn(2000, np.array([1.0]), bias=-1.0)
    slope, offset = logistic.platt(3 - x[:, 0], right)
    assert slope == 0
    assert float(sigmoid(np.array(offset))) == pytest.approx(right.mean(), abs=0.01)


def test_no_row_is_scored_by_a_fit_that_has_seen_its_group() -> None:
    # The only column is the label in group a, and in every other group nothing.
    rng = np.random.default_rng(3)
    groups = ["a"] * 100 + ["b"] * 200 + ["c"] * 200
    right = rng.integers(0, 2, 500).astype(float)
    x = np.where(np.array(groups) == "a", right, 0.0)[:, None]
    own = np.array(groups) == "a"
    found = logistic.grouped(x, right, groups)
    assert len(set(found[own].tolist())) == 1, "the fit to b and c knows nothing of the column"
    assert curves.auroc(logistic.fit(x, right).logits(x)[own], right[own]) == 1


def test_a_groups_own_labels_do_not_move_its_scores() -> None:
    x, right = drawn(300)
    groups = ["a", "b", "c"] * 100
    own = np.array(groups) == "b"
    turned = np.where(own, 1 - right, right)
    before, after = logistic.grouped(x, right, groups), logistic.grouped(x, turned, groups)
    assert before[own] == pytest.approx(after[own])
    assert before[~own] != pytest.approx(after[~own])


def test_a_calibrated_fit_ranks_as_the_fit_does_and_is_no_surer_than_unseen_groups_allow() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 20))
    right = (rng.random(60) < sigmoid(x[:, 0])).astype(float)
    groups = [str(number % 6) for number in range(60)]
    whole, mended = logistic.fit(x, right, l2=0.1), logistic.calibrated(x, right, groups, l2=0.1)[0]
    assert np.linalg.norm(mended.weights) < np.linalg.norm(whole.weights) / 2
    fresh, labels = drawn(5000, np.array([1.0] + [0.0] * 19), bias=0.0, seed=6)
    loss = [float(-np.log(np.abs(labels - 1 + one.probabilities(fresh)) + 1e-12).mean()) for one in (whole, mended)]
    assert loss[1] < loss[0]


def test_rows_are_told_what_a_fit_says_that_has_not_seen_their_group() -> None:
    x, right = drawn(300)
    groups = ["a", "b", "c"] * 100
    own = np.array(groups) == "b"
    found, said = logistic.calibrated(x, right, groups)
    logits = logistic.grouped(x, right, groups)
    slope, offset = logistic.platt(logits, right)
    assert said == pytest.approx(sigmoid(slope * logits + offset))
    assert said[own] != pytest.approx(found.probabilities(x)[own])


def test_weights_are_learnt_from_the_rows_that_were_chosen_and_scaled_by_all() -> None:
    x, right = drawn(4000)
    chosen = np.arange(4000) % 2 == 0
    blurred = np.where(chosen, right, 0.0)  # in the others, nothing tells and nothing is right
    groups = [str(number // 2 % 5) for number in range(4000)]
    found, said = logistic.calibrated(x, blurred, groups, of=chosen)
    alone = logistic.fit(x[chosen], right[chosen])
    assert found.weights / found.weights[0] == pytest.approx(alone.weights / alone.weights[0])
    assert said.mean() == pytest.approx(blurred.mean(), abs=0.01)
    assert logistic.grouped(x, blurred, groups, of=chosen) == pytest.approx(
        logistic.grouped(x, right, groups, of=chosen)
    ), "labels of the others are not looked at"


def test_with_one_group_there_is_nothing_to_scale_by() -> None:
    x, right = drawn(100)
    found, said = logistic.calibrated(x, right, ["a"] * 100)
    assert found.weights == pytest.approx(logistic.fit(x, right).weights)
    assert said == pytest.approx(found.probabilities(x))
