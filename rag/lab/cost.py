"""Tokens and joules to money: a machine of one's own against a cloud, and when the machine pays.

Knows the arithmetic, and says what came of it in words. What goes in is `assumptions`', what kept turns tell of it
`receipts`', what a cloud charges `prices`', how it is shown `cost_view`'s.

Everything is linear. A turn is put to a model with the share `asked`, and to the larger one with the share `escalated`;
a scenario has what a machine costs a day whether or not it is used, and what each turn adds. See `Scenario.at` and
`break_even`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from rag import __version__
from rag.lab.assumptions import ANSWERS, BENCHMARKS, SPEEDS, Assumption, Plan, plan
from rag.lab.machine import machine
from rag.lab.prices import OLD_DAYS, SHIPPED, Price, chosen, one_currency
from rag.lab.receipts import Receipts

MONTH_DAYS = 30.4
YEAR_DAYS = 365
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Costs:
    """Of a stretch of time, in the currency of the prices."""

    hardware: float
    electricity: float
    other: float
    tokens: float

    @property
    def total(self) -> float:
        return self.hardware + self.electricity + self.other + self.tokens

    @property
    def running(self) -> float:
        """What is paid again and again, without the price of the machine."""
        return self.electricity + self.other + self.tokens

    def times(self, days: float) -> "Costs":
        return Costs(self.hardware * days, self.electricity * days, self.other * days, self.tokens * days)


@dataclass(frozen=True)
class Scenario:
    """A way to have all turns answered."""

    name: str
    """Of its figures."""
    title: str
    plan: Plan
    hardware_price: float | None
    """Of one machine; None where none is needed."""
    seconds_per_turn: float
    """That a machine computes."""
    tokens_per_turn: float
    """What a cloud is paid for each turn."""

    @property
    def capacity(self) -> float:
        """Most turns a day of one machine that answers them one after another: hours on x 3600 / seconds of a turn."""
        if self.hardware_price is None or not self.seconds_per_turn:
            return math.inf
        return self.plan.hours_on * 3600 / self.seconds_per_turn

    def machines(self, turns: float) -> int:
        """As many as turns / capacity, rounded up; at least one where any is needed."""
        if self.hardware_price is None:
            return 0
        return max(1, math.ceil(turns / self.capacity - 1e-9))

    def purchase(self, turns: float) -> float:
        return self.machines(turns) * (self.hardware_price or 0.0)

    def at(self, turns: float) -> Costs:
        """Of a day with so many turns.

        - hardware: machines x price / (life in years x 365), straight line
        - electricity: (machines x idle W x seconds on + turns x seconds of a turn x (W - idle W)) / 3.6e6 x price of a kWh
        - other: machines x other a month / 30.4
        - tokens: turns x what a cloud is paid for a turn
        """
        plan, machines = self.plan, self.machines(turns)
        waiting_j = machines * plan.idle_watts * plan.hours_on * 3600
        computing_j = turns * self.seconds_per_turn * (plan.watts - plan.idle_watts)
        return Costs(
            hardware=self.purchase(turns) / (plan.life_years * YEAR_DAYS),
            electricity=(waiting_j + computing_j) / JOULES_PER_KWH * plan.kwh_price if machines else 0.0,
            other=machines * plan.other_per_month / MONTH_DAYS,
            tokens=turns * self.tokens_per_turn,
        )

    @property
    def fixed(self) -> float:
        """Of a day without a turn, one machine."""
        return self.at(0).total

    @property
    def marginal(self) -> float:
        """What one turn more costs, as long as one machine is enough."""
        here = 0.0 if self.hardware_price is None else self.seconds_per_turn
        joules = here * (self.plan.watts - self.plan.idle_watts)
        return joules / JOULES_PER_KWH * self.plan.kwh_price + self.tokens_per_turn


@dataclass(frozen=True)
class BreakEven:
    """From how many turns a day on `here` is cheaper than `there`."""

    here: Scenario
    there: Scenario
    kind: str
    """above, below (of `turns_per_day`), always, never, beyond (more than one machine can do), or same."""
    turns_per_day: float | None
    """At which both cost the same."""
    payback_months: float | None
    """Until what was saved has paid for the machines, at `turns`; None: never, or there is nothing to pay."""
    turns: float
    """A day, as planned."""

    @property
    def told(self) -> str:
        n, most = self.turns_per_day or 0.0, self.here.capacity
        does = count(most, down=True)
        if self.kind == "above":
            # A machine that must be half busy to pay does not pay for one more that is idle.
            until = f"to {does}, as many as one machine does; one more must be as busy" if n > most / 2 else "on"
            words = f"cheaper from {count(n)} turns a day {until}"
        elif self.kind == "beyond":
            words = f"never cheaper: that would take {count(n)} turns a day, and one machine does {does}"
        elif self.kind == "never":
            words = "never cheaper: a turn adds as much here as there, or more"
        elif self.kind == "same":
            words = "costs the same"
        elif self.kind == "below" and n < most:
            words = f"cheaper up to {count(n, down=True)} turns a day"
        elif self.there.hardware_price is None or not math.isfinite(most):
            words = "cheaper at any number of turns"
        else:
            words = f"cheaper at any number of turns up to {does}, as many as one machine does"
        if self.payback_months is not None:
            longer = " (longer than its life)" if self.payback_months > self.here.plan.life_years * 12 else ""
            when = f"after {self.payback_months:,.1f} months{longer}"
            words += f"; at {amount(self.turns)} turns a day it has paid for itself {when}"
        return words


def break_even(here: Scenario, there: Scenario, turns: float) -> BreakEven:
    """Where the costs of a day, fixed + turns x marginal, cross.

    n = (fixed here - fixed there) / (marginal there - marginal here), as far as one machine does so many. Where it does
    not, more machines do not help: each costs as much again, and does no more.

    Payback in months = price of the machines beyond those of `there` / (running costs there - here, a month), at `turns`
    a day.
    """
    dearer = here.fixed - there.fixed
    saved = there.marginal - here.marginal
    crossing = dearer / saved if saved else None
    if not dearer and not saved:
        kind = "same"
    elif dearer <= 0 and saved >= 0:
        kind = "always"
    elif dearer >= 0 and saved <= 0:
        kind = "never"
    elif dearer < 0:
        kind = "below"
    else:
        kind = "above" if crossing is not None and crossing <= here.capacity else "beyond"
    bought = here.purchase(turns) - there.purchase(turns)
    a_month = (there.at(turns).running - here.at(turns).running) * MONTH_DAYS
    payback = bought / a_month if bought > 0 and a_month > 0 else None
    return BreakEven(here, there, kind, crossing if kind in ("above", "below", "beyond") else None, payback, turns)


@dataclass(frozen=True)
class Report:
    plan: Plan
    assumptions: list[Assumption]
    currency: str
    scenarios: list[Scenario]
    """The first is `local`."""
    break_evens: list[BreakEven]
    prices: list[Price]
    """Of the models in the scenarios."""
    price_table: str
    receipts: Receipts | None
    energy_measured: bool
    energy: str
    """Whether it was measured or estimated, and by what: a sentence."""
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        turns = self.plan.turns_per_day
        local = self.scenarios[0]
        told: dict[str, float] = {
            "turns_per_day": turns,
            "seconds_per_turn": self.plan.seconds_per_turn,
            "joules_per_turn": self.plan.joules_per_turn,
            "machines": local.machines(turns),
        }
        if math.isfinite(local.capacity):
            told |= {"capacity_turns_per_day": local.capacity, "busy_share": turns / local.capacity}
        if self.receipts is not None:
            told |= {
                "receipts": self.receipts.turns,
                "receipts_measured": self.receipts.energy.measured,
                "receipts_estimated": self.receipts.energy.estimated,
            }
        for one in self.scenarios:
            day = one.at(turns)
            month = day.times(MONTH_DAYS)
            told[f"{one.name}, per_turn"] = day.total / turns
            told[f"{one.name}, per_month"] = month.total
            told[f"{one.name}, per_year"] = day.times(YEAR_DAYS).total
            told |= {f"{one.name}, {part}_per_month": value for part, value in asdict(month).items()}
        for found in self.break_evens:
            pair = f"{found.here.name} against {found.there.name}"
            if found.turns_per_day is not None:
                told[f"{pair}, break_even_turns_per_day"] = found.turns_per_day
            if found.payback_months is not None:
                told[f"{pair}, payback_months"] = found.payback_months
        return {name: float(f"{value:.10g}") for name, value in told.items()}

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": self.metrics,
            "currency": self.currency,
            "month_days": MONTH_DAYS,
            "year_days": YEAR_DAYS,
            "assumptions": [asdict(one) for one in self.assumptions],
            "energy": {"measured": self.energy_measured, "told": self.energy},
            "receipts": None if self.receipts is None else self.receipts.to_dict(),
            "scenarios": [{"name": one.name, "title": one.title} for one in self.scenarios],
            "break_even": [
                {
                    "here": found.here.name,
                    "there": found.there.name,
                    "kind": found.kind,
                    "turns_per_day": found.turns_per_day,
                    "payback_months": found.payback_months,
                    "told": found.told,
                }
                for found in self.break_evens
            ],
            "prices": [price.to_dict() for price in self.prices],
            "price_table": self.price_table,
            "notes": self.notes,
            "version": __version__,
            "machine": machine(),
        }


def report(
    given: Mapping[str, float | None],
    *,
    receipts: Receipts | None,
    prices: Sequence[Price],
    today: date,
    watts: float,
    clouds: Sequence[str] = (),
    currency: str | None = None,
    table: Path = SHIPPED,
) -> Report:
    """What every scenario costs, and where they cross.

    `given` are the user's own values by the names of `KNOBS`, `watts` those of the settings; `clouds` the models to
    compare with, of the `prices` of `table`; `currency` that of the user's own prices, None for the table's. Raises
    UserError.
    """
    planned = plan(given, receipts, watts=watts)
    made = planned.plan
    picked = chosen(prices, clouds, made.llm_input_tokens, made.llm_output_tokens)
    told_in = one_currency(picked, currency)
    scenarios = _scenarios(made, picked)
    local, *others = scenarios
    named = {one.name: one for one in scenarios}
    pairs = [(local, other) for other in others]
    pairs += [(named[f"cascade {price.model}"], named[f"cloud {price.model}"]) for price in picked]
    measured, energy = _energy(receipts, own=planned.own("watts", "joules_per_turn"))
    return Report(
        plan=made,
        assumptions=planned.assumptions(told_in),
        currency=told_in,
        scenarios=scenarios,
        break_evens=[break_even(here, there, made.turns_per_day) for here, there in pairs],
        prices=picked,
        price_table="as shipped" if table == SHIPPED else str(table),
        receipts=receipts,
        energy_measured=measured,
        energy=energy,
        notes=_notes(made, local, picked, receipts, today)
        + [BENCHMARKS] * any(source in (ANSWERS, SPEEDS) for source in planned.sources.values()),
    )


def _scenarios(made: Plan, picked: Sequence[Price]) -> list[Scenario]:
    """A model in a cloud that answers everything reads and writes as the larger one does; one that is asked first, as the
    small one.
    """
    asked, escalated, cached = made.asked_rate, made.escalation_rate, made.cached_share

    def as_small(price: Price) -> float:
        return price.cost(made.slm_input_tokens, made.slm_output_tokens, cached)

    def as_large(price: Price) -> float:
        return price.cost(made.llm_input_tokens, made.llm_output_tokens, cached)

    small_s = made.small_seconds_per_turn
    found = [Scenario("local", "all here", made, made.hardware_price, made.seconds_per_turn, 0.0)]
    for price in picked:
        name, title = f"cascade {price.model}", f"small here + {price.model}"
        found.append(Scenario(name, title, made, made.small_hardware_price, small_s, escalated * as_large(price)))
    for price in picked:
        found.append(
            Scenario(f"cloud {price.model}", f"all to {price.model}", made, None, 0.0, asked * as_large(price))
        )
    if len(picked) > 1:
        first, then = picked[0], picked[-1]
        both = asked * as_small(first) + escalated * as_large(then)
        title = f"{first.model} + {then.model}"
        found.append(Scenario(f"cloud {first.model} then {then.model}", title, made, None, 0.0, both))
    return found


def _energy(receipts: Receipts | None, *, own: bool) -> tuple[bool, str]:
    """Was it measured, and the sentence that says so."""
    if own:
        return False, "Energy is estimated from your own watts or joules; nothing was measured."
    if receipts is None:
        return False, "Energy is estimated, watts x seconds; nothing was measured."
    energy = receipts.energy
    known = energy.measured + energy.estimated
    by = ", ".join(energy.sources)
    if energy.measured:
        rest = f" The {energy.estimated:,} that were estimated are left out." if energy.estimated else ""
        return True, f"Energy was measured in {energy.measured:,} of {known:,} receipts ({by}).{rest}"
    if known:
        return False, f"Energy is estimated in each of the {known:,} receipts that tell it ({by}); none was measured."
    return False, "Energy is estimated, watts x seconds; no receipt tells it."


def _notes(made: Plan, local: Scenario, picked: Sequence[Price], receipts: Receipts | None, today: date) -> list[str]:
    notes = []
    if (machines := local.machines(made.turns_per_day)) > 1:
        notes.append(
            f"One machine answers {count(local.capacity, down=True)} turns a day, one after another;"
            f" {machines:,} are counted here."
        )
    elif math.isfinite(local.capacity):
        notes.append(
            f"One machine computes {made.turns_per_day / local.capacity:.1%} of the time that it is on. It can do"
            f" {count(local.capacity, down=True)} turns a day, one after another."
        )
    if receipts is not None:
        days = "" if receipts.first is None else f", {receipts.first} to {receipts.last}"
        notes.append(f"Receipts: {receipts.turns:,} turns{days}.")
    if receipts is not None and receipts.broken_off:
        notes.append(
            f"{receipts.broken_off:,} of {receipts.turns:,} turns were stopped or failed; they count as turns of a day,"
            " and are taken to cost what the others do."
        )
    for price in picked:
        age_days = (today - price.as_of).days
        if age_days > OLD_DAYS:
            notes.append(
                f"The price of {price.model} is of {price.as_of}, {age_days:,} days old. Look at {price.source}, and edit a"
                " copy of the table (--prices-path, --prices)."
            )
    notes.append(
        f"A month has {MONTH_DAYS} days, a year {YEAR_DAYS}. Cloud prices are list prices, without tax, batches or"
        " discounts; a cloud counts tokens in its own way, and a model that thinks writes more than is counted here."
    )
    notes.append(
        "“Small here + X”: the small model answers here, and X what it escalates. “X + Y”: the same, with X in the small"
        " model's place. “All to X”: for each turn X reads and writes what the larger model does for one."
    )
    notes.append(
        "This is about money alone. How well each answers is measured by `smallfirst evaluate answers --compare`."
    )
    return notes


def count(value: float, *, down: bool = False) -> str:
    if not math.isfinite(value):
        return "any number of"
    return f"{math.floor(value) if down else math.ceil(value):,}"


def amount(value: float) -> str:
    """Four digits that count; a whole number from 1,000 on."""
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
