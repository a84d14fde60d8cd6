"""L2-regularised logistic regression on a few signals, and Platt scaling of what it says.

Knows matrices, labels and groups; not what a column means. Small enough that Newton's method ends in a dozen steps, so the
product needs no library of hundreds of megabytes for it; a test compares it with scikit-learn's figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

L2 = 30.0
"""Strength of the penalty on standardised weights (1 / C in scikit-learn's terms); chosen by grouped cross-validation."""


@dataclass(frozen=True)
class Fit:
    """p = sigmoid(bias + weights · x), for x as it comes: standardising and Platt scaling are folded in."""

    weights: Matrix
    bias: float

    def logits(self, x: Matrix) -> Matrix:
        """Shape (n,) for x of shape (n, columns)."""
        return np.asarray(x @ self.weights + self.bias)

    def probabilities(self, x: Matrix) -> Matrix:
        return sigmoid(self.logits(x))


def fit(x: Matrix, right: Matrix, *, l2: float = L2) -> Fit:
    """A fit to x of shape (n, columns) and labels 0 or 1 of shape (n,). With one kind of label only, its
    (smoothed) share.
    """
    n, columns = x.shape
    share = (float(right.sum()) + 1) / (n + 2)
    if not n or right.min() == right.max():
        return Fit(np.zeros(columns), float(np.log(share / (1 - share))))
    mean, scale = x.mean(axis=0), x.std(axis=0)
    # A signal that never differs tells nothing; dividing by its spread would.
    scale = np.where(scale < 1e-9, np.inf, scale)
    weights, bias = _newton((x - mean) / scale, right, l2)
    weights = weights / scale
    return Fit(weights, bias - float(mean @ weights))


def platt(logits: Matrix, right: Matrix) -> tuple[float, float]:
    """Slope and offset that make sigmoid(slope * logit + offset) match the labels (Platt 1999, labels not smoothed)."""
    weights, bias = _newton(logits[:, None], right, 1e-3)
    if weights[0] > 0:
        return float(weights[0]), bias
    # A slope that turns the order round comes from too few labels: then nothing is known but how many are right.
    share = (float(right.sum()) + 1) / (len(right) + 2)
    return 0.0, float(np.log(share / (1 - share)))


def grouped(
    x: Matrix, right: Matrix, groups: Sequence[str], *, of: NDArray[np.bool_] | None = None, l2: float = L2
) -> Matrix:
    """A logit for each row from a fit that has seen no row of its group (leave-one-group-out), and only rows in `of`."""
    of = np.ones(len(right), bool) if of is None else of
    found = np.zeros(len(right))
    names = np.array(groups)
    for name in sorted(set(groups)):
        own = names == name
        found[own] = fit(x[of & ~own], right[of & ~own], l2=l2).logits(x[own])
    return found


def calibrated(
    x: Matrix, right: Matrix, groups: Sequence[str], *, of: NDArray[np.bool_] | None = None, l2: float = L2
) -> tuple[Fit, Matrix]:
    """A fit to the rows in `of`, Platt-scaled on all of them by what fits say of groups that they have not seen; and for
    each row what that says, as a probability."""
    of = np.ones(len(right), bool) if of is None else of
    whole = fit(x[of], right[of], l2=l2)
    if len(set(groups)) < 2 or right.min() == right.max():
        return whole, whole.probabilities(x)
    logits = grouped(x, right, groups, of=of, l2=l2)
    slope, offset = platt(logits, right)
    return Fit(whole.weights * slope, whole.bias * slope + offset), sigmoid(slope * logits + offset)


def sigmoid(x: Matrix) -> Matrix:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -500, 500))))


def _newton(x: Matrix, y: Matrix, l2: float) -> tuple[Matrix, float]:
    columns = np.c_[x, np.ones(len(y))]
    weights = np.zeros(columns.shape[1])
    penalty = np.full(len(weights), l2)
    penalty[-1] = 1e-9  # the bias is free
    loss = np.inf
    for _ in range(100):
        p = sigmoid(columns @ weights)
        gradient = columns.T @ (p - y) + penalty * weights
        hessian = (columns * (p * (1 - p))[:, None]).T @ columns + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        # Near-separable labels make a full step overshoot.
        size = 1.0
        while size > 1e-6 and (tried := _loss(columns, y, weights - size * step, penalty)) > loss:
            size /= 2
        weights = weights - size * step
        if abs(loss - tried) < 1e-10:
            break
        loss = tried
    return weights[:-1], float(weights[-1])


def _loss(x: Matrix, y: Matrix, weights: Matrix, penalty: Matrix) -> float:
    z = x @ weights
    return float(np.sum(np.logaddexp(0, z) - y * z) + 0.5 * np.sum(penalty * weights**2))
