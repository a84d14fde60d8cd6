"""Sums over the turns of a conversation, whole ones and parts of some."""

import json
from typing import Any

import pytest

from rag.serve.totals import answered_by, totals


def bill(**changes: Any) -> dict[str, Any]:
    told = {
        "input_tokens": 100, "output_tokens": 10, "at_least": False, "tokens_per_s": 9.0, "cost": 0.0, "currency": "USD",
        "cost_known": True, "energy_j": 20.0, "energy_measured": False, "energy_source": "estimated from CPU time",
        "watts": 20, "resources": {"slm": {"cpu_s": 1.5, "peak_memory_mb": 270.1}},
    }  # fmt: skip
    return told | changes


def turn(by: str | None = "slm", total_ms: float = 1000, ttft_ms: float | None = 200, **changes: Any) -> dict[str, Any]:
    told = {
        "question": "Where do zebras drink?",
        "answer": "At the river [1].",
        "model": f"model-{by}" if by else None,
        "escalated": False,
        "refused": False,
        "drafts": [{"leg": by, "model": f"model-{by}"}] if by else [],
        "trace": {"spans": [], "total_ms": total_ms, "ttft_ms": ttft_ms},
        "bill": bill(),
    }
    return told | changes


BOTH = [{"leg": "slm", "model": "model-slm"}, {"leg": "llm", "model": "model-llm"}]
TWO = {"slm": {"cpu_s": 0.5}, "llm": {"cpu_s": 4.0, "peak_memory_mb": 2000}}
ESCALATED = turn(
    "llm", 3000, 400, escalated=True, drafts=BOTH, bill=bill(cost=0.002, energy_j=5.0, resources=TWO)
)  # fmt: skip
NOTHING = bill(input_tokens=0, output_tokens=0, energy_j=0.0, energy_source="", resources={})
SILENT = turn(None, 50, None, refused=True, bill=NOTHING)
STOPPED = {"stopped": True, "trace": {"spans": [{"name": "first_token"}], "total_ms": 700.0, "ttft_ms": 300.0}}
FAILED = {"error": "No model at http://x.", "trace": {"spans": [], "total_ms": 10.0, "ttft_ms": None}}


def test_before_the_first_turn_there_is_nothing() -> None:
    assert totals([]) == {
        "turns": 0, "escalated": 0, "escalation_rate": None, "refused": 0, "stopped": 0, "failed": 0,
        "input_tokens": None, "output_tokens": None, "at_least": False, "time_ms": 0.0, "ttft_ms_median": None,
        "cost": None, "currency": None, "cost_known": True, "energy_j": None, "energy_measured": False,
        "energy_source": "", "watts": None, "cpu_s": None, "peak_memory_mb": None, "latency": [],
    }  # fmt: skip


def test_the_turns_of_a_conversation_are_summed() -> None:
    told = totals(iter([turn(), ESCALATED, SILENT, STOPPED, FAILED]))
    assert json.loads(json.dumps(told)) == told
    latency = told.pop("latency")
    assert told == {
        "turns": 5, "escalated": 1, "escalation_rate": pytest.approx(1 / 3), "refused": 1, "stopped": 1, "failed": 1,
        "input_tokens": 200, "output_tokens": 20, "at_least": True, "time_ms": 4760.0, "ttft_ms_median": 300.0,
        "cost": 0.002, "currency": "USD", "cost_known": True, "energy_j": 25.0, "energy_measured": False,
        "energy_source": "estimated from CPU time", "watts": 20, "cpu_s": 6.0, "peak_memory_mb": 2000,
    }  # fmt: skip
    assert [entry["by"] for entry in latency] == ["slm", "llm", None, None, None]
    assert [entry["total_ms"] for entry in latency] == [1000, 3000, 50, 700, 10]
    assert latency[2]["refused"]
    assert latency[3]["question"] is None


def test_one_turn_of_unknown_cost_leaves_the_sum_of_the_others() -> None:
    told = totals([ESCALATED, turn(bill=bill(cost=None, cost_known=False))])
    assert (told["cost"], told["cost_known"]) == (0.002, False)


def test_two_currencies_have_no_sum() -> None:
    told = totals([turn(), turn(bill=bill(currency="EUR", watts=35))])
    assert (told["cost"], told["currency"], told["cost_known"], told["watts"]) == (None, None, False, None)
    assert told["energy_j"] == 40, "each turn's estimate was made with its own watts"


def test_energy_is_measured_only_if_all_of_it_was() -> None:
    measured = turn(bill=bill(energy_measured=True, energy_source="RAPL, package + NVML"))
    told = totals([measured, SILENT, measured])
    assert (told["energy_measured"], told["energy_source"]) == (True, "RAPL, package + NVML")
    old = bill()
    for name in ("energy_measured", "energy_source", "resources"):
        del old[name]
    told = totals([measured, turn(bill=old)])
    assert (told["energy_j"], told["energy_measured"]) == (40, False)
    assert told["energy_source"] == "RAPL, package + NVML + estimated from computing time", "as older turns were"


def test_energy_that_was_not_estimated_is_not_zero() -> None:
    assert totals([turn(bill=bill(energy_j=None, watts=0))])["energy_j"] is None


def test_a_stopped_turn_before_a_model_was_asked_hides_nothing() -> None:
    assert not totals([{"stopped": True, "trace": {"spans": [{"name": "retrieve"}]}}])["at_least"]


@pytest.mark.parametrize("part", [{}, {"bill": None, "trace": None, "drafts": None}, {"model": "x"}, {"trace": {}}])
def test_parts_of_a_turn_do_no_harm(part: dict[str, Any]) -> None:
    told = totals([part, turn()])
    assert (told["turns"], told["input_tokens"], told["escalation_rate"]) == (2, 100, 0.0)


def test_who_answered_is_who_wrote_what_stands() -> None:
    kept_short = ESCALATED | {"model": "model-slm", "escalated": False}
    assert answered_by(kept_short) == "slm"
    same = [draft | {"model": "one"} for draft in BOTH]
    assert answered_by({"model": "one", "drafts": same, "escalated": True, "standing": "slm"}) == "slm"
    assert answered_by({"model": "one", "drafts": same, "escalated": True}) == "llm"
    assert answered_by({"model": "one", "drafts": same, "escalated": False}) == "slm"
    assert answered_by({"model": "gone", "drafts": BOTH}) is None
