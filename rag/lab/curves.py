"""How well a score ranks answers, how far it can be believed, and what quality costs in calls.

Pure functions of arrays: scores (higher is better), 0 or 1 for right, groups. Knows no models and no policy.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float64]
BINS = 10
RESAMPLES = 1000
SEED = 4


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Chance that a positive one scores above a negative one, ties half; nan with only one kind."""
    score, wanted = np.asarray(scores, float), np.asarray(positive, bool)
    count, other = int(wanted.sum()), int((~wanted).sum())
    if not count or not other:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ends - (counts - 1) / 2  # the mean rank of each run of equal scores
    return float((ranks[place][wanted].sum() - count * (count + 1) / 2) / (count * other))


def calibration_error(probabilities: ArrayLike, right: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error with bins of equal count: mean distance of what was said from what was so, in [0, 1]."""
    parts = reliability(probabilities, right, bins)
    total = sum(count for _, _, count in parts)
    return sum(abs(said - so) * count for said, so, count in parts) / total if total else float("nan")


def reliability(probabilities: ArrayLike, right: ArrayLike, bins: int = BINS) -> list[tuple[float, float, int]]:
    """For each bin, lowest first: mean probability, share that was right, count."""
    said, so = np.asarray(probabilities, float), np.asarray(right, float)
    # Equal probabilities are one statement, wherever the edge of a bin falls among them.
    _, place, counts = np.unique(said, return_inverse=True, return_counts=True)
    so = (np.bincount(place, weights=so) / counts)[place]
    order = np.argsort(said, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(float(said[part].mean()), float(so[part].mean()), len(part)) for part in parts]


def risk_coverage(scores: ArrayLike, right: ArrayLike) -> tuple[Vector, Vector]:
    """Share kept, and share of those that is wrong, as ever lower scores are kept; both of length n."""
    order = np.argsort(-np.asarray(scores, float), kind="stable")
    wrong = 1 - np.asarray(right, float)[order]
    kept = np.arange(1, len(wrong) + 1)
    return kept / len(wrong), np.cumsum(wrong) / kept


def quality_by_calls(gain: ArrayLike, small: ArrayLike, large: ArrayLike) -> tuple[Vector, Vector]:
    """Share of questions given to the larger model, those of highest `gain` first, and the share answered right then.

    Both of length n + 1, from no calls to all. `small` and `large` are 0 or 1 for each question.
    """
    order = np.argsort(-np.asarray(gain, float), kind="stable")
    own, other = np.asarray(small, float), np.asarray(large, float)
    steps = np.concatenate([[0.0], np.cumsum((other - own)[order])])
    return np.arange(len(own) + 1) / len(own), (own.sum() + steps) / len(own)


def apgr(gain: ArrayLike, small: ArrayLike, large: ArrayLike) -> float:
    """Average performance gap recovered (Ong et al. 2024): the share of the gap between the models, averaged over call
    rates; 0.5 for a random order. nan when the larger model is not better."""
    calls, quality = quality_by_calls(gain, small, large)
    gap = quality[-1] - quality[0]
    if gap <= 0:
        return float("nan")
    return float(np.trapezoid((quality - quality[0]) / gap, calls))


def calls_for(share: float, gain: ArrayLike, small: ArrayLike, large: ArrayLike) -> float:
    """The least share of calls from which on `share` of the gap is recovered (CPT50 is calls_for(0.5, ...))."""
    calls, quality = quality_by_calls(gain, small, large)
    gap = quality[-1] - quality[0]
    if gap <= 0:
        return float("nan")
    return float(calls[int(np.argmax(quality >= quality[0] + share * gap - 1e-12))])


def interval(
    figure: Callable[[NDArray[np.int64]], float], groups: Sequence[str], resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95% bootstrap interval of `figure(rows)`: whole questions are drawn again, within their groups."""
    rng = np.random.default_rng(SEED)
    names = np.array(groups)
    parts = [np.flatnonzero(names == name) for name in sorted(set(groups))]
    values = [figure(np.concatenate([rng.choice(part, len(part)) for part in parts])) for _ in range(resamples)]
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return float("nan"), float("nan")
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))
