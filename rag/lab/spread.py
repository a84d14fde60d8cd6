"""Several measurements of one thing: Spread, with its mean, standard deviation and percentiles.

Knows arithmetic; nothing of what was measured, or in which unit.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """At least one value, in the order in which they were measured."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of those that are known; None where none is."""
        known = tuple(value for value in values if value is not None)
        return cls(known) if known else None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Of a sample (divided by n - 1), as llama-bench prints it; None of one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def p50(self) -> float:
        return self.percentile(50)

    @property
    def p95(self) -> float:
        return self.percentile(95)

    def percentile(self, percent: float) -> float:
        """Between two values in proportion (type 7 of Hyndman & Fan 1996, numpy's default, as vLLM's benchmark has it)."""
        return float(np.percentile(self.values, percent))

    def to_dict(self) -> dict[str, float | int | None]:
        sd = self.sd
        return {
            "n": len(self.values),
            "mean": round(self.mean, 3),
            "sd": None if sd is None else round(sd, 3),
            "p50": round(self.p50, 3),
            "p95": round(self.p95, 3),
        }
