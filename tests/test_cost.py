"""Money: against numbers worked out by hand, where lines cross, from receipts of real turns, and as it is typed."""

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import fields
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from .sessions import Tab, data_layer, settled  # before anything that imports Chainlit

# isort: split
import chainlit as cl

from rag.cli import main
from rag.errors import UserError
from rag.lab import assumptions, cost, cost_view, prices, receipt_files, receipts
from rag.lab.assumptions import KNOB, KNOBS, Plan
from rag.serve import exports
from rag.serve.history import History
from rag.settings import Settings
from rag.turn import cascade
from rag.turn.cascade import Answered
from rag.turn.session import Session

from .conftest import open_library
from .scripted import Reply, ScriptedLegs

ROOT = Path(__file__).parent.parent
TODAY = date(2026, 11, 21)

X = {
    "model": "x", "provider": "Ex", "input": 1.0, "cached_input": 0.1, "output": 10.0, "currency": "USD",
    "as_of": "2026-10-01", "source": "https://ex.example/prices",
}  # fmt: skip
DEAR = X | {"model": "dear", "input": 4, "output": 20, "cached_input": None}

BY_HAND: dict[str, float | None] = {
    "turns_per_day": 100, "asked_rate": 1, "escalation_rate": 0.5, "slm_input_tokens": 100, "slm_output_tokens": 10,
    "llm_input_tokens": 1000, "llm_output_tokens": 100, "slm_seconds": 2, "llm_seconds": 8, "watts": 105,
    "idle_watts": 5, "hours_on": 10, "kwh_price": 0.36, "hardware_price": 730, "life_years": 2, "other_per_month": 30.4,
    "cached_share": 0,
}  # fmt: skip


def table(*rows: dict[str, Any]) -> list[prices.Price]:
    return [
        prices.Price(**{"note": "", **row, "as_of": date.fromisoformat(row["as_of"])})  # type: ignore[arg-type]
        for row in rows
    ]


def told(given: dict[str, float | None] = BY_HAND, *rows: dict[str, Any], **more: Any) -> cost.Report:
    named: dict[str, Any] = {"receipts": None, "today": TODAY, "watts": 20.0} | more
    return cost.report(given, prices=table(*(rows or (X,))), **named)


# --- Arithmetic ---


def test_a_day_comes_to_what_was_worked_out_by_hand() -> None:
    metrics = told().metrics
    # 730 over 2 years is 1 a day; 5 W for 10 h are 180 kJ, 100 turns of 6 s at 100 W more are 60 kJ: 0.0667 kWh at 0.36.
    assert metrics["local, per_turn"] == pytest.approx(0.02024)
    assert metrics["local, hardware_per_month"] == pytest.approx(30.4)
    assert metrics["local, electricity_per_month"] == pytest.approx(0.024 * 30.4)
    assert metrics["local, other_per_month"] == pytest.approx(30.4)
    assert metrics["local, tokens_per_month"] == 0
    assert metrics["local, per_month"] == pytest.approx(2.024 * 30.4)
    assert metrics["local, per_year"] == pytest.approx(2.024 * 365)
    assert (metrics["seconds_per_turn"], metrics["joules_per_turn"]) == (6, 630)
    # 1,000 read at 1 and 100 written at 10, a million: 0.002 a turn, in the cascade of every other one.
    assert metrics["cloud x, per_turn"] == pytest.approx(0.002)
    assert metrics["cascade x, per_month"] == pytest.approx((1 + 1 + 0.02 + 0.1) * 30.4)
    assert metrics["cascade x, tokens_per_month"] == pytest.approx(0.1 * 30.4)
    # (1 + 1 + 0.018) / (0.002 - 600 J)
    assert metrics["local against cloud x, break_even_turns_per_day"] == pytest.approx(2.018 / 0.00194)
    assert "local against cloud x, payback_months" not in metrics, "at 100 turns a day it never pays"


def test_a_machine_pays_for_itself_by_what_it_saves_a_month() -> None:
    metrics = told(BY_HAND | {"turns_per_day": 2000}).metrics
    assert metrics["local against cloud x, payback_months"] == pytest.approx(730 / ((4 - 1.138) * 30.4))


def test_of_two_models_the_cheap_one_may_stand_in_the_small_ones_place() -> None:
    metrics = told(BY_HAND | {"asked_rate": 0.8}, DEAR, X).metrics
    as_small, as_large = (100 * 1 + 10 * 10) / 1e6, (1000 * 4 + 100 * 20) / 1e6
    assert metrics["cloud x then dear, per_turn"] == pytest.approx(0.8 * as_small + 0.5 * as_large)


def test_what_is_cached_is_billed_as_such_where_that_price_is_known() -> None:
    cheap, dear = table(X, DEAR)
    assert cheap.cost(1000, 0, 0.5) == pytest.approx((500 * 1 + 500 * 0.1) / 1e6)
    assert dear.cost(1000, 0, 0.5) == dear.cost(1000, 0)


def test_load_that_one_machine_cannot_do_takes_more_machines() -> None:
    assert told(BY_HAND | {"turns_per_day": 6000}).metrics["machines"] == 1, "6 s each, 10 hours a day"
    busy = told(BY_HAND | {"turns_per_day": 6001})
    assert busy.metrics["machines"] == 2
    assert busy.metrics["local, hardware_per_month"] == pytest.approx(2 * 30.4)
    assert any("6,000 turns a day, one after another; 2 are counted" in note for note in busy.notes)


BASE = {"asked_rate": 0.9, "cached_share": 0.1}
MORE: dict[str, tuple[float, tuple[int, int, int]]] = {
    # What happens to local, cascade and cloud as it grows to this.
    "turns_per_day": (300, (1, 1, 1)),
    "asked_rate": (1, (1, 1, 1)),
    "escalation_rate": (0.5, (1, 1, 0)),
    "slm_input_tokens": (400, (1, 1, 0)),
    "slm_output_tokens": (400, (1, 1, 0)),
    "llm_input_tokens": (900, (1, 1, 1)),
    "llm_output_tokens": (900, (1, 1, 1)),
    "slm_read_speed": (1000, (-1, -1, 0)),
    "slm_write_speed": (1000, (-1, -1, 0)),
    "llm_read_speed": (1000, (-1, 0, 0)),
    "llm_write_speed": (1000, (-1, 0, 0)),
    "slm_seconds": (9, (1, 1, 0)),
    "llm_seconds": (90, (1, 0, 0)),
    "watts": (90, (1, 1, 0)),
    "joules_per_turn": (900, (1, 1, 0)),
    "idle_watts": (9, (1, 1, 0)),
    "hours_on": (24, (1, 1, 0)),
    "kwh_price": (0.5, (1, 1, 0)),
    "hardware_price": (900, (1, 1, 0)),
    "small_hardware_price": (900, (0, 1, 0)),
    "life_years": (5, (-1, -1, 0)),
    "other_per_month": (3, (1, 1, 0)),
    "cached_share": (0.9, (0, -1, -1)),
}


def test_every_assumption_has_a_flag_a_place_in_the_plan_and_a_case_below() -> None:
    names = [knob.name for knob in KNOBS]
    assert names == [field.name for field in fields(Plan)]
    assert set(MORE) == set(names)


@pytest.mark.parametrize("name", MORE)
def test_each_assumption_changes_what_it_should_and_nothing_else(name: str) -> None:
    value, signs = MORE[name]
    before = told({**BASE, "hours_on": 23.0} if name == "hours_on" else dict(BASE))
    after = told({**BASE, name: value})
    for scenario, sign in zip(("local", "cascade x", "cloud x"), signs, strict=True):
        less, more = (one.metrics[f"{scenario}, per_month"] for one in (before, after))
        assert (more > less) - (more < less) == sign, (scenario, less, more)
    assert {one.name: one.source for one in after.assumptions}[name] == "your flag"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"turns_per_day": 0}, "--turns-per-day is 0. It is more than 0"),
        ({"escalation_rate": 1.5}, "--escalation-rate is 1.5. It is at least 0 and at most 1"),
        ({"watts": float("nan")}, "--watts is nan"),
        ({"kwh_price": float("inf")}, "--kwh-price is inf"),
        ({"hardware_price": -1}, "--hardware-price is -1"),
        ({"life_years": 0}, "--life-years is 0"),
        ({"hours_on": 25}, "--hours-on is 25"),
        ({"idle_watts": 21}, "--idle-watts is 21, more than the 20 W"),
        ({"escalation_rate": 0.5, "asked_rate": 0.4}, "--escalation-rate is 0.5"),
        ({"slm_seconds": 1, "slm_read_speed": 9}, "--slm-seconds and --slm-read-speed say the same"),
        ({"watts": 9, "joules_per_turn": 9}, "--joules-per-turn and --watts say the same"),
        ({"joules_per_turn": 9, "slm_seconds": 0, "llm_seconds": 0}, "no model computes"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(given: dict[str, float | None], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        told(given)
    assert "\n" not in str(caught.value)


def test_watts_that_nobody_knows_are_asked_for() -> None:
    with pytest.raises(UserError, match="Give --watts"):
        told({}, watts=0.0)
    assert told({"watts": 9}, watts=0.0).plan.watts == 9


def test_a_default_gives_way_to_what_was_said() -> None:
    found = {one.name: one for one in told({"asked_rate": 0.2, "watts": 3}).assumptions}
    assert (found["escalation_rate"].value, found["escalation_rate"].source) == (
        0.2,
        "assumed: no more than are put to a model",
    )
    assert (found["idle_watts"].value, found["idle_watts"].source) == (
        3,
        "assumed: no more than while a model computes",
    )
    assert "slm_read_speed" not in {one.name for one in told({"slm_seconds": 2}).assumptions}, "it changes nothing then"


def test_defaults_that_are_called_benchmarks_are_those_that_are_shipped() -> None:
    answers = json.loads((ROOT / "benchmarks/answers/qwen2.5-coder-0.5b/report.json").read_text())["metrics"]
    measured_speeds = json.loads((ROOT / "benchmarks/speed.json").read_text())["backends"]
    speed = {one["model"]: one for one in measured_speeds if one["runtime"] == "llama.cpp, as installed"}
    measured = {"escalation_rate": answers["auto_llm_calls"]}
    for leg, model in (("slm", "qwen2.5-coder-0.5b"), ("llm", "qwen2.5-coder-1.5b")):
        measured |= {f"{leg}_{count}_tokens": answers[f"{leg}_{count}_tokens"] for count in ("input", "output")}
        for ours, theirs in (("read", "prefill"), ("write", "decode")):
            measured[f"{leg}_{ours}_speed"] = speed[model][f"{theirs}_tokens_per_s"]
    assert {knob.name: knob.default for knob in KNOBS if knob.source in (assumptions.ANSWERS, assumptions.SPEEDS)} == {
        name: pytest.approx(value, rel=0.005) for name, value in measured.items()
    }


# --- Where lines cross ---


def plans(count: int) -> Iterator[cost.Report]:
    """Of all sorts, the same ones each time."""
    chance = random.Random(7)
    for _ in range(count):
        given: dict[str, float | None] = {
            "turns_per_day": 10 ** chance.uniform(0, 5), "escalation_rate": chance.random(),
            "slm_seconds": 10 ** chance.uniform(-2, 2), "llm_seconds": 10 ** chance.uniform(-2, 2),
            "llm_input_tokens": 10 ** chance.uniform(1, 4), "watts": 10 ** chance.uniform(1, 3),
            "hardware_price": chance.choice([0, 10 ** chance.uniform(1, 4)]), "hours_on": chance.uniform(1, 24),
            "small_hardware_price": chance.choice([None, 10 ** chance.uniform(1, 4)]),
            "idle_watts": chance.choice([0, 5]), "kwh_price": 10 ** chance.uniform(-2, 1),
        }  # fmt: skip
        yield told(given, X, DEAR)


def test_a_break_even_is_where_both_cost_the_same_and_no_other_place_is() -> None:
    kinds = set()
    for found in itertools.chain.from_iterable(report.break_evens for report in plans(150)):
        kinds.add(found.kind)
        here, there, most = found.here, found.there, min(found.here.capacity, 1e9)

        def dearer(turns: float, here: cost.Scenario = here, there: cost.Scenario = there) -> float:
            return here.at(turns).total - there.at(turns).total

        slack = 1e-9 * (here.at(most).total + there.at(most).total)
        if found.kind in ("above", "below"):
            n = found.turns_per_day
            assert n is not None
            assert dearer(n) == pytest.approx(0, abs=1e-9 * max(here.at(n).total, 1e-12)) or n > most
            sign = 1 if found.kind == "above" else -1
            assert sign * dearer(min(n * 0.9, most)) > 0
            assert n * 1.1 > most or sign * dearer(n * 1.1) < 0
        for share in (1e-6, 0.01, 0.3, 0.7, 1):
            if found.kind == "always":
                assert dearer(most * share) <= slack
            if found.kind in ("never", "beyond"):
                assert dearer(most * share) >= -slack
        if found.kind == "beyond" and here.capacity < 1e8:
            for machines in (1.5, 2, 7, 7.1):
                assert dearer(here.capacity * machines) >= -slack * 10, "nor do more machines help"
    assert kinds == {"above", "below", "always", "never", "beyond"}


def test_a_machine_that_must_be_busy_to_pay_says_so() -> None:
    # 6,000 turns a day at most; a price at which 5,000 must be done.
    price = 2.018 / 5000 + 600 / 3.6e6 * 0.36
    words = told(BY_HAND, X | {"input": price * 1e3, "output": 0}).break_evens[1].told
    assert words.startswith("cheaper from 5,000 turns a day to 6,000, as many as one machine does")
    assert "never cheaper: that would take" in told(BY_HAND, X | {"input": 0.1, "output": 0}).break_evens[1].told
    assert "adds as much here" in told(BY_HAND, X | {"input": 0, "output": 0}).break_evens[1].told


def test_more_turns_never_cost_less() -> None:
    for report in plans(40):
        for scenario in report.scenarios:
            days = [scenario.at(10 ** (power / 4)).total for power in range(28)]
            assert days == sorted(days)


# --- Prices ---


def test_the_shipped_table_says_of_each_price_when_and_where_it_was_read() -> None:
    rows = prices.load()
    assert len({row.provider for row in rows}) >= 3
    for row in rows:
        assert row.as_of <= date.today()
        assert row.source.startswith("https://")
        assert 0 < row.input <= row.output
        assert row.cached_input is None or row.cached_input < row.input


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "has no list of prices"),
        ('{"prices": 3}', "has no list of prices"),
        ("[3]", "row 1 is not an object"),
        ([X | {"model": " "}], "row 1: model is ' '"),
        ([X, DEAR | {"input": "4"}], r"row 2 \(dear\): input is '4'"),
        ([X | {"output": -1}], r"row 1 \(x\): output is -1"),
        ([X | {"output": True}], "output is True"),
        ([X | {"cached_input": float("nan")}], "cached_input is nan"),
        ([X | {"as_of": "last May"}], "as_of is 'last May'"),
        ([{name: value for name, value in X.items() if name != "source"}], "source is None"),
        ([X, X], r"row 2: x is there twice"),
    ],
)
def test_what_is_wrong_with_a_table_is_named_by_row_and_field(tmp_path: Path, content: Any, says: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=says) as caught:
        prices.load(path)
    assert str(path) in str(caught.value)


def test_models_are_chosen_by_name_or_all_or_the_two_ends() -> None:
    rows = table(DEAR, X, X | {"model": "mid", "input": 2})
    assert [one.model for one in prices.chosen(rows, [], 1000, 100)] == ["x", "dear"]
    assert [one.model for one in prices.chosen(rows, ["all"], 1000, 100)] == ["x", "mid", "dear"]
    assert [one.model for one in prices.chosen(rows, ["dear", "x", "x"], 1000, 100)] == ["x", "dear"]
    assert len(prices.chosen(rows[:1], [], 1000, 100)) == 1
    with pytest.raises(UserError, match=r"no gpt-2\. It has: dear, x, mid"):
        prices.chosen(rows, ["gpt-2"], 1, 1)


def test_nothing_is_converted() -> None:
    euro = X | {"model": "euro", "currency": "EUR"}
    with pytest.raises(UserError, match="USD and EUR"):
        told(BY_HAND, X, euro, clouds=["all"])
    with pytest.raises(UserError, match="--currency is EUR and the price table is in USD"):
        told(BY_HAND, X, currency="EUR")
    report = told(BY_HAND, X, euro, clouds=["euro"], currency="EUR")
    assert report.currency == "EUR"
    assert {one.unit for one in report.assumptions if one.name == "kwh_price"} == {"EUR a kWh"}


def test_a_price_older_than_a_year_is_told() -> None:
    old = date.fromisoformat(X["as_of"])
    assert not any("days old" in note for note in told(today=old + timedelta(365)).notes)
    (note,) = (note for note in told(today=old + timedelta(366)).notes if "days old" in note)
    assert "x is of 2026-10-01, 366 days old. Look at https://ex.example/prices" in note


# --- Receipts ---


def spans(leg: str, first_ms: float, after_ms: float) -> list[dict[str, Any]]:
    return [
        {"name": "request", "leg": leg, "start_ms": 0, "duration_ms": 1.0},
        {"name": "first_token", "leg": leg, "start_ms": 0, "duration_ms": first_ms},
        {"name": "completion", "leg": leg, "start_ms": 0, "duration_ms": after_ms},
    ]


def draft(leg: str, read: int, written: int) -> dict[str, Any]:
    return {"leg": leg, "usage": {"input_tokens": read, "output_tokens": written}}


KEPT: dict[str, Any] = {
    "answer": "At the river.", "mode": "auto", "where": "on this machine", "drafts": [draft("slm", 200, 20)],
    "trace": {"spans": spans("slm", 500, 500)}, "bill": {"energy_j": 20.0, "watts": 20},
    "asked_at": "2026-11-01T23:30:00-02:00",
}  # fmt: skip
ESCALATED = KEPT | {
    "drafts": [draft("slm", 400, 40), draft("llm", 900, 30)],
    "trace": {"spans": [*spans("slm", 1500, 500), *spans("llm", 3000, 1000)]},
    "bill": {"energy_j": 90.0, "energy_measured": True, "energy_source": "RAPL, package"},
    "asked_at": "2026-11-04T10:00:00Z",
}  # fmt: skip
SILENT = {
    "answer": "Not in your documents.",
    "mode": "auto",
    "where": None,
    "drafts": [],
    "trace": {"spans": []},
    "bill": {"energy_j": 0.0},
}
STOPPED = {
    "stopped": True,
    "answer": "At",
    "trace": {"spans": spans("slm", 9e9, 1)},
    "asked_at": "2026-11-03T10:00:00Z",
}


def test_receipts_tell_rates_tokens_speeds_and_watts() -> None:
    found = receipts.from_turns([KEPT, ESCALATED, SILENT, STOPPED])
    assert (found.turns, found.broken_off, found.first, found.last) == (4, 1, date(2026, 11, 2), date(2026, 11, 4))
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values == pytest.approx(
        {
            "turns_per_day": 1, "asked_rate": 2 / 3, "escalation_rate": 1 / 3,
            "slm_input_tokens": 300, "slm_output_tokens": 30, "llm_input_tokens": 900, "llm_output_tokens": 30,
            "slm_read_speed": 600 / 2, "slm_write_speed": 60 / 1, "llm_read_speed": 300, "llm_write_speed": 30,
            "watts": 15,
        }
    )  # fmt: skip
    assert found.figures["watts"].of == "1 turn, measured: RAPL, package"
    report = told({}, receipts=found)
    assert report.energy_measured
    assert (
        report.energy
        == "Energy was measured in 1 of 2 receipts (RAPL, package). The 1 that were estimated are left out."
    )
    assert report.metrics["seconds_per_turn"] == pytest.approx((2 * 1.5 + 4) / 3), "as the receipts together"
    assert {one.name: one.source for one in report.assumptions}["slm_input_tokens"] == "receipts: mean of 2 turns"
    assert "Receipts: 4 turns, 2026-11-02 to 2026-11-04." in report.notes
    assert any("1 of 4 turns were stopped or failed" in note for note in report.notes)


def test_a_flag_goes_before_a_receipt() -> None:
    found = receipts.from_turns([ESCALATED])
    report = told({"watts": 50, "llm_input_tokens": 10}, receipts=found)
    assert (report.plan.watts, report.plan.llm_input_tokens, report.plan.llm_output_tokens) == (50, 10, 30)
    assert not report.energy_measured
    assert "your own watts" in report.energy


def test_old_receipts_are_estimates() -> None:
    report = told({}, receipts=receipts.from_turns([KEPT]))
    assert not report.energy_measured
    assert (
        report.energy
        == "Energy is estimated in each of the 1 receipts that tell it (estimated from computing time); none was measured."
    )
    assert report.metrics["receipts_estimated"] == 1


def test_what_computed_elsewhere_is_no_time_of_this_machine() -> None:
    away = ESCALATED | {"where": "api.example"}
    found = receipts.from_turns([away])
    assert found.figures["llm_input_tokens"].value == 900
    assert not {"watts", "slm_read_speed", "llm_read_speed"} & set(found.figures)
    assert told({}, receipts=found).energy == "Energy is estimated, watts x seconds; no receipt tells it."


@pytest.mark.parametrize(
    "part",
    [
        {"answer": ""}, {"answer": "", "drafts": None, "trace": None, "bill": None}, {"error": "No model."},
        {"answer": "", "drafts": [3], "trace": {"spans": [None]}, "bill": {"energy_j": -1}, "asked_at": "once"},
        KEPT | {"drafts": [{"leg": "slm", "usage": None}]}, KEPT | {"bill": {"energy_j": float("nan")}},
        KEPT | {"drafts": [draft("slm", 10**400, -3)]},
    ],
)  # fmt: skip
def test_parts_of_a_turn_do_no_harm(part: dict[str, Any]) -> None:
    report = told({}, receipts=receipts.from_turns([part, KEPT]))
    assert report.plan.slm_input_tokens == 200
    assert report.plan.watts == 20


def test_turns_that_were_never_in_auto_tell_no_escalation_rate() -> None:
    found = receipts.from_turns([ESCALATED | {"mode": "llm", "drafts": [draft("llm", 900, 30)]}])
    assert "escalation_rate" not in found.figures
    assert found.figures["asked_rate"].value == 1


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "animals.md").write_text("# Zebras\n\nZebras drink at the Mara river every morning.\n")
    library = open_library(docs, tmp_path / "cache")
    session = Session(library)
    yield session
    session.attachments.close()
    library.close()


async def turn(session: Session, settings: Settings, question: str, *replies: Reply) -> dict[str, Any]:
    legs = ScriptedLegs(replies[:1], replies[1:])
    async with aclosing(cascade.answer(question, session=session, legs=legs, settings=settings)) as events:
        last = [event async for event in events][-1]
    assert isinstance(last, Answered), last
    return last.turn.to_dict()


async def test_real_turns_are_read_from_every_kind_of_file(
    session: Session, settings: Settings, tmp_path: Path
) -> None:
    question, good = "Where do zebras drink?", Reply("Zebras drink at the Mara river.")
    kept = await turn(session, settings, question, good)
    larger = await turn(session, settings, question, Reply("Near old wooden fences mostly.", logprob=-2.5), good)
    silent = await turn(session, settings, "Who won the football world cup in Uruguay?")
    assert [larger["escalated"], silent["model"]] == [True, None]
    turns = [kept, larger, silent]
    direct = receipts.from_turns(turns)
    assert direct.figures["escalation_rate"].value == pytest.approx(1 / 3)
    assert direct.figures["asked_rate"].value == pytest.approx(2 / 3)
    assert direct.figures["slm_input_tokens"].value == 100
    assert direct.figures["slm_output_tokens"].value == pytest.approx((6 + 5) / 2)
    assert direct.energy.measured + direct.energy.estimated == 2

    steps = [
        {"id": str(number), "type": kind, "createdAt": f"2026-11-0{number // 2 + 1}T10:00:00Z", "metadata": metadata}
        for number, (kind, metadata) in enumerate((kind, told) for told in turns for kind in ("user_message", "assistant_message"))
    ]  # fmt: skip
    for step in steps[::2]:
        step["metadata"] = {}
    files = {
        "one.json": json.dumps(turns),
        "object.json": json.dumps({"turns": turns}, indent=2),
        "lines.jsonl": "\ufeff" + "\n".join(json.dumps(one) for one in turns) + "\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        again = receipts.from_turns(receipt_files.read([tmp_path / name]))
        assert again == direct, name
    singles = [tmp_path / f"{number}.json" for number in range(3)]
    for path, one in zip(singles, turns, strict=True):
        path.write_text(json.dumps(one))
    assert receipts.from_turns(receipt_files.read(singles)) == direct

    both = [
        {"id": str(number), "type": "assistant_message", "createdAt": one["asked_at"], "metadata": one}
        for number, one in enumerate((KEPT, ESCALATED))
    ]
    (tmp_path / "energy.csv").write_bytes(exports.as_csv({"steps": both}))
    found, known = (
        receipts.from_turns(one) for one in (receipt_files.read([tmp_path / "energy.csv"]), [KEPT, ESCALATED])
    )
    assert (found.energy, found.figures["watts"]) == (known.energy, known.figures["watts"])

    (tmp_path / "chat.csv").write_bytes(exports.as_csv({"steps": steps}))
    table_ = receipts.from_turns(receipt_files.read([tmp_path / "chat.csv"]))
    assert (table_.turns, table_.first, table_.last) == (3, date(2026, 11, 1), date(2026, 11, 3))
    for name in ("asked_rate", "escalation_rate", "watts"):
        assert table_.figures[name].value == pytest.approx(direct.figures[name].value, rel=0.01), name
    assert table_.figures["slm_output_tokens"].value == 6, "of the escalated turn the table tells but the sum of both"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b"", "hold no turn"),
        ("a.json", b"[]", "hold no turn"),
        ("a.json", b'[{"question": "x"}]', "something that is no turn"),
        ("a.jsonl", b'{"answer": ""}\nnot JSON\n', "line 2, are not JSON"),
        ("a.jsonl", b'{"answer": ""}\n[7]\n', "line 2 hold something that is no turn"),
        ("a.json", b"\xff\xfe\x00", "no text in UTF-8"),
        ("a.csv", b"asked_at,question\n2026,x\n", "not as the chat writes them"),
    ],
)
def test_receipts_that_cannot_be_read_say_where(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says) as caught:
        receipts.from_turns(receipt_files.read([tmp_path / name]))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


# --- As it is typed ---


def typed(*arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["cost", *arguments, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


def test_a_forecast_tells_where_each_value_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    report = typed("--turns-per-day", "500", "--kwh-price", "0.3", capsys=capsys)
    sources = {one["name"]: one["source"] for one in report["assumptions"]}
    assert set(sources) == set(KNOB)
    assert sources["turns_per_day"] == sources["kwh_price"] == "your flag"
    assert (sources["hardware_price"], sources["watts"]) == ("assumed", "assumed: RAG_WATTS")
    assert sources["llm_input_tokens"] == "benchmark: SQuAD 2.0"
    assert report["metrics"]["turns_per_day"] == 500
    assert report["energy"] == {
        "measured": False,
        "told": "Energy is estimated, watts x seconds; nothing was measured.",
    }
    assert all(isinstance(value, int | float) for value in report["metrics"].values())
    assert [price["as_of"] for price in report["prices"]] == [price.as_of.isoformat() for price in _ends()]


def _ends() -> list[prices.Price]:
    return prices.chosen(
        prices.load(), [], KNOB["llm_input_tokens"].default or 0, KNOB["llm_output_tokens"].default or 0
    )


def test_the_terminal_shows_assumptions_scenarios_and_break_even(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rag.terminal.out.width", 100, raising=False)
    assert main(["cost", "--turns-per-day", "3000"]) == 0
    out = capsys.readouterr().out
    for knob in KNOBS:
        assert knob.flag in out
    cheap, dear = _ends()
    for words in ("all here", f"all to {cheap.model}", f"small here + {dear.model}", str(dear.as_of), dear.source):
        assert words in out
    assert f"all here, against all to {dear.model}: cheaper from " in out
    assert "turns a day it has paid for itself after" in out
    assert "nothing was measured" in out


class Data(HTMLParser):
    """What is in the page's element of data, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.data = ""
        self._within = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._within = ("id", "data") in attrs
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href") and not (value or "").startswith("#")
        ]

    def handle_data(self, data: str) -> None:
        if self._within:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        self._within = False


def test_the_page_holds_the_same_figures_and_both_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cost.html"
    report = typed("--turns-per-day", "3000", "--cloud", "all", "--page", str(path), capsys=capsys)
    read = Data()
    read.feed(path.read_text())
    assert json.loads(read.data) == report
    assert read.tags.count("svg") == 2
    assert not read.fetched
    shown = path.read_text()
    for words in (report["energy"]["told"], *(one["flag"] for one in report["assumptions"]), prices.load()[0].source):
        assert words in shown


def test_free_tokens_have_no_place_on_the_chart_and_break_nothing(tmp_path: Path) -> None:
    assert "<svg" in cost_view.html(told(BY_HAND, X | {"input": 0, "output": 0, "cached_input": 0}))
    assert "<svg" in cost_view.html(told({"slm_seconds": 0, "llm_seconds": 0, "hardware_price": 0, "idle_watts": 0}))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--life-years", "0"], "--life-years is 0"),
        (["--watts", "nan"], "--watts is nan"),
        (["--cloud", "gpt-2"], "gpt-2. It has: "),
        (["--prices", "/nowhere.json"], "/nowhere.json cannot be read"),
        (["--receipts", "/nowhere.json"], "/nowhere.json cannot be read"),
        (["--currency", "EUR"], "nothing is converted"),
        (["--page", "/nowhere/page.html"], "/nowhere/page.html cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_the_shipped_table_can_be_copied_and_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--prices-path"]) == 0
    copied = json.loads(Path(capsys.readouterr().out.strip()).read_text())
    copied["prices"] = [X]
    (tmp_path / "mine.json").write_text(json.dumps(copied))
    report = typed("--prices", str(tmp_path / "mine.json"), "--llm-input-tokens", "1e6", capsys=capsys)
    assert [price["model"] for price in report["prices"]] == ["x"]
    assert report["metrics"]["cloud x, per_turn"] > 1
    assert report["price_table"] == str(tmp_path / "mine.json")


def test_where_nothing_was_kept_there_are_no_receipts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "data"))
    assert main(["cost", "--receipts"]) == 2
    err = capsys.readouterr().err
    assert "no turn was kept here yet" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "data").exists(), "to look for conversations makes none"


async def test_conversations_that_are_kept_here_are_receipts(tmp_path: Path) -> None:
    data, empty = tmp_path / "data", tmp_path / "cwd"
    empty.mkdir()
    history = History(data)
    with data_layer(history):
        for kept in (KEPT, ESCALATED):
            page = Tab()
            await page.ask("Where do zebras drink?")
            turn = {name: value for name, value in kept.items() if name != "asked_at"}
            await cl.Message("At the river.", metadata=turn).send()
            await cl.Message("A notice.").send()
            await settled()
            await page.close()
    await history.close()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "rag.cli", "cost", "--receipts", "--json"],
        env={**os.environ, "RAG_DATA_DIR": str(data), "PYTHONPATH": str(ROOT)}, cwd=empty,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["metrics"]["receipts"] == 2
    assert report["receipts"]["energy"] == {"measured": 1, "estimated": 1, "unknown": 0, "sources": ["RAPL, package"]}
    sources = {one["name"]: one["source"] for one in report["assumptions"]}
    assert sources["turns_per_day"].startswith("receipts: 2 turns in "), "by when they were asked"
    assert sources["escalation_rate"] == "receipts: 1 of 2 turns in Auto"
    assert list(empty.iterdir()) == [], "Chainlit writes nothing where somebody happens to be"
