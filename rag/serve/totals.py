"""What a conversation used so far, from its turns' dictionaries.

Knows the shape of a turn's dictionary and nothing of where it is kept. A turn that was stopped or failed has only parts
of it; a part that is missing counts for nothing, and the total says so where that matters.
"""

from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from rag.energy import FROM_COMPUTING_TIME, sources

Turn = Mapping[str, Any]


def totals(turns: Iterable[Turn]) -> dict[str, Any]:
    """Sums over a conversation's turns, and the latency of each, in their order.

    `escalation_rate` is the share of the answered turns that escalated, None before the first. `at_least` says that more
    tokens were used than are counted; money and energy then are at least so much, too. `cost` is the sum of what is known
    and `cost_known` false where a turn's is not; in two currencies there is no sum. `energy_source` is how the energy is
    known, `energy_measured` whether every part of it was measured; CPU seconds are of all models that ran here, the memory
    is the most that one of them had. What no turn tells is None.
    """
    kept = list(turns)
    bills = [turn["bill"] for turn in kept if turn.get("bill")]
    answered = sum(is_answered(turn) for turn in kept)
    escalated = sum(bool(turn.get("escalated")) for turn in kept)
    costs = [bill["cost"] for bill in bills if bill.get("cost") is not None]
    currencies = {bill["currency"] for bill in bills if bill.get("currency")}
    watts = {bill["watts"] for bill in bills if bill.get("watts") is not None}
    powered = [bill for bill in bills if bill.get("energy_j")]
    used = [model for bill in bills for model in (bill.get("resources") or {}).values()]
    firsts = [ttft for turn in kept if (ttft := _time(turn, "ttft_ms")) is not None]
    return {
        "turns": len(kept),
        "escalated": escalated,
        "escalation_rate": escalated / answered if answered else None,
        "refused": sum(bool(turn.get("refused")) for turn in kept),
        "stopped": sum(bool(turn.get("stopped")) for turn in kept),
        "failed": sum("error" in turn for turn in kept),
        "input_tokens": _sum(bills, "input_tokens"),
        "output_tokens": _sum(bills, "output_tokens"),
        "at_least": any(bill.get("at_least") for bill in bills) or any(_unbilled(turn) for turn in kept),
        "time_ms": round(sum(_time(turn, "total_ms") or 0.0 for turn in kept), 3),
        "ttft_ms_median": round(median(firsts), 3) if firsts else None,
        "cost": round(sum(costs), 10) if costs and len(currencies) <= 1 else None,
        "currency": _only(currencies),
        "cost_known": all(bill.get("cost_known") for bill in bills) and len(currencies) <= 1,
        "energy_j": _sum(bills, "energy_j"),
        "energy_measured": bool(powered) and all(bill.get("energy_measured") for bill in powered),
        "energy_source": " + ".join(dict.fromkeys(source for bill in powered for source in _sources(bill))),
        "watts": _only(watts),
        "cpu_s": _sum(used, "cpu_s"),
        "peak_memory_mb": max((model["peak_memory_mb"] for model in used if "peak_memory_mb" in model), default=None),
        "latency": [
            {
                "total_ms": _time(turn, "total_ms"),
                "ttft_ms": _time(turn, "ttft_ms"),
                "by": answered_by(turn),
                "escalated": bool(turn.get("escalated")),
                "refused": bool(turn.get("refused")),
                "question": turn.get("question"),
            }
            for turn in kept
        ],
    }


def is_answered(turn: Turn) -> bool:
    """It came to its end, be that a refusal."""
    return "answer" in turn and not turn.get("stopped") and "error" not in turn


def answered_by(turn: Turn) -> str | None:
    """The leg that wrote the answer which stands, `slm` or `llm`; None where no model did, or it is not told."""
    if turn.get("model") is None:
        return None
    if turn.get("standing"):  # by somebody's wish, in the place of the other's
        return str(turn["standing"])
    legs = {draft["leg"] for draft in turn.get("drafts") or () if draft.get("model") == turn["model"]}
    if len(legs) > 1:  # one model in both places
        return "llm" if turn.get("escalated") else "slm"
    return next(iter(legs), None)


def _unbilled(turn: Turn) -> bool:
    """A model was at work, and nobody counted."""
    spans = (turn.get("trace") or {}).get("spans") or ()
    return not turn.get("bill") and any(span.get("name") == "first_token" for span in spans)


def _time(turn: Turn, name: str) -> float | None:
    value: float | None = (turn.get("trace") or {}).get(name)
    return value


def _sources(bill: Mapping[str, Any]) -> tuple[str, ...]:
    """Older bills were all estimated alike, and do not say so."""
    return sources(bill.get("energy_source") or FROM_COMPUTING_TIME)


def _sum(parts: Iterable[Mapping[str, Any]], name: str) -> Any:
    """Of what is known; None where nothing is."""
    known = [part[name] for part in parts if part.get(name) is not None]
    return round(sum(known), 3) if known else None


def _only(values: set[Any]) -> Any:
    """The one that all agree on."""
    return next(iter(values)) if len(values) == 1 else None
