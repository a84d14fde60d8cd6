"""What the product itself costs: the real one, started once, and figures against those computed by hand."""

from pathlib import Path
from typing import Any

import pytest

from rag.energy import UNKNOWN
from rag.lab import overhead, overhead_view
from rag.lab.overhead import Pair, Report, Streamed
from rag.resources import Used
from rag.settings import Settings


async def test_the_product_is_measured_beside_the_bare_request(
    small_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_SLM_MODEL", "smollm2-135m")
    report = Report()
    told: list[tuple[Any, ...]] = []
    await overhead.run(report, Settings.load(), 1, starts=1, progress=lambda *what: told.append(what))
    metrics = report.metrics
    assert (len(report.starts_s), len(report.pairs), report.model) == (1, 1, "smollm2-135m")
    assert metrics["installed_mb"] > 100
    assert metrics["memory_mb"] > 50
    assert metrics["own_peak_memory_mb"] > 50, "that of the model's server is not ours"
    assert metrics["model_server_peak_memory_mb"] > 90
    assert metrics["own_cpu_s_per_pair"] >= 0
    assert metrics["turn_before_request_ms"] > 0
    (pair,) = report.pairs
    assert pair.bare.gaps_ms
    assert pair.ours.gaps_ms
    assert metrics["overhead_ms"] == pytest.approx(pair.ours.first_ms - pair.bare.first_ms, abs=0.01)
    assert told[-1] == ("pairs of requests", 2, 2)


def test_what_is_told_of_pairs_is_of_each_pair() -> None:
    report = Report(model="small", starts_s=[2.0, 3.0, 2.5], turns_ms=[1.0, 3.0, 2.0])
    for bare, ours in ((20.0, 25.0), (40.0, 50.0), (10.0, 12.0)):
        report.pairs.append(Pair(Streamed(bare, (8.0, 12.0), 100), Streamed(ours, (10.0, 14.0), 107)))
    report.own_cpu_s = 0.2
    report.product, report.server = (Used(None, mb, None, None, UNKNOWN) for mb in (500.0, 300.0))
    metrics = report.metrics
    assert (metrics["start_s"], metrics["turn_before_request_ms"]) == (2.5, 2)
    # Differences 5, 10, 2; the 95th percentile lies 0.95 x 2 = 1.9 places after the least: 5 + 0.9 x (10 - 5).
    assert (metrics["overhead_ms"], metrics["overhead_ms_p95"]) == (5, 9.5)
    # Ratios 1.25, 1.25, 1.2.
    assert (metrics["ratio"], metrics["ratio_p95"]) == (1.25, 1.25)
    assert (metrics["bare_first_token_ms"], metrics["first_token_ms"]) == (20, 25)
    assert (metrics["whole_answer_overhead_ms"], metrics["inter_token_ms"]) == (7, 12)
    # Three pairs, and the one that reads the prompt.
    assert metrics["own_cpu_s_per_pair"] == 0.05
    assert (metrics["own_peak_memory_mb"], metrics["model_server_peak_memory_mb"]) == (200, 300)
    html = overhead_view.html(report)
    assert "The product adds 5.0 ms" in html
    assert "1.25 times as long" in html


def test_what_was_not_measured_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(model="small", installed_mb=585.0, starts_s=[2.0])
    assert report.metrics == {"installed_mb": 585, "start_s": 2.0}
    overhead_view.show(report)
    shown = capsys.readouterr().out
    assert "2.0 s" in shown
    assert "bare" not in shown
    assert "first token" not in overhead_view.html(report).partition("How it was measured")[0]
