"""Figures of several measurements, against what was computed by hand."""

import pytest

from rag.lab.spread import Spread


def test_mean_deviation_and_percentiles_are_those_of_the_textbook() -> None:
    spread = Spread.of([4, 1, 10, 2, 3])
    assert spread is not None
    # The squares of what each differs from 4 by are 0 + 9 + 36 + 4 + 1 = 50; divided by 4, and its root.
    assert (spread.mean, spread.sd) == (4, pytest.approx(12.5**0.5))
    # The 95th percentile lies 0.95 x 4 = 3.8 places after the least: 4 + 0.8 x (10 - 4).
    assert (spread.p50, spread.p95) == (3, pytest.approx(8.8))
    assert spread.to_dict() == {"n": 5, "mean": 4, "sd": 3.536, "p50": 3, "p95": 8.8}


def test_what_is_not_known_is_left_out_and_one_value_has_no_deviation() -> None:
    assert Spread.of([]) is None
    assert Spread.of([None, None]) is None
    alone = Spread.of([None, 7.0])
    assert alone is not None
    assert (alone.mean, alone.sd, alone.p50, alone.p95) == (7, None, 7, 7)
