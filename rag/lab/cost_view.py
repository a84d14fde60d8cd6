"""How a cost report is shown: in the terminal, and as a page.

Knows words, tables and charts; reckons nothing itself.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields

from rich.table import Table

from rag import terminal
from rag.lab import charts, page
from rag.lab.cost import MONTH_DAYS, YEAR_DAYS, Costs, Report, amount, count


def money(value: float) -> str:
    """Two digits after the point, or as many as show three that count."""
    if not value:
        return "0"
    if value >= 1:
        return f"{value:,.2f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}"


HEAD = ("name", "value", "unit", "from", "flag")


def _assumption_rows(told: Report) -> list[tuple[str, str, str, str, str]]:
    return [(one.what, amount(one.value), one.unit, one.source, one.flag) for one in told.assumptions]


def _price_rows(told: Report) -> list[tuple[str, str, str, str, str, str]]:
    return [
        (
            f"{price.model}, {price.provider}" + (f" ({price.note})" if price.note else ""),
            money(price.input),
            "–" if price.cached_input is None else money(price.cached_input),
            money(price.output),
            price.as_of.isoformat(),
            price.source,
        )
        for price in told.prices
    ]


def _scenario_rows(told: Report) -> list[tuple[str, ...]]:
    rows = []
    for one in told.scenarios:
        day = one.at(told.plan.turns_per_day)
        month = day.times(MONTH_DAYS)
        sums = (day.total / told.plan.turns_per_day, month.total, day.times(YEAR_DAYS).total)
        parts = (month.hardware, month.electricity, month.other, month.tokens)
        rows.append((one.title, *(money(value) for value in (*sums, *parts))))
    return rows


def _scenario_head(told: Report) -> tuple[str, ...]:
    return (
        f"in {told.currency}", "a turn", "a month", "a year", "hardware", "electricity", "other", "tokens",
    )  # fmt: skip


def _price_head(told: Report) -> tuple[str, ...]:
    return (f"{told.currency} a million tokens", "read", "cached", "written", "as of", "published at")


def lead(told: Report) -> str:
    """The cheapest at the turns of the plan, in a sentence."""
    turns = told.plan.turns_per_day
    best = min(told.scenarios, key=lambda one: one.at(turns).total)
    day = best.at(turns)
    return (
        f"At {amount(turns)} turns a day the cheapest is “{best.title}”: {told.currency} {money(day.total / turns)} a turn,"
        f" {money(day.times(MONTH_DAYS).total)} a month."
    )


def show(told: Report) -> None:
    """In the terminal: what went in, prices, scenarios, break-evens, notes."""
    given = [(one.flag, amount(one.value), one.unit, one.source) for one in told.assumptions]
    _print("What goes in, and what changes it", ("flag", "value", "unit", "from"), given, numbers=(1,))
    prices = [row[:-1] for row in _price_rows(told)]
    _print(f"Price table, {told.price_table}", _price_head(told)[:-1], prices, numbers=(1, 2, 3))
    for provider, source in dict.fromkeys((price.provider, price.source) for price in told.prices):
        terminal.out.print(f"{provider} publishes them at {source}")
    rows, head = _scenario_rows(told), _scenario_head(told)
    _print(
        f"At {amount(told.plan.turns_per_day)} turns a day", head[:4], [row[:4] for row in rows], numbers=range(1, 4)
    )
    parts = [(row[0], *row[4:]) for row in rows]
    _print("What a month is made of", (head[0], *head[4:]), parts, numbers=range(1, 5))
    for found in told.break_evens:
        terminal.out.print(f"{found.here.title}, against {found.there.title}: {found.told}.")
    terminal.out.print(told.energy)
    for note in told.notes:
        terminal.out.print(note)
    terminal.out.print(lead(told))


def _print(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> None:
    shown = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        shown.add_column(name, justify="right" if place in numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    terminal.out.print(shown)


def html(told: Report) -> str:
    """The report as one page (`rag.lab.page`)."""
    by_turns, caption = _lines(told)
    month = {one.title: asdict(one.at(told.plan.turns_per_day).times(MONTH_DAYS)) for one in told.scenarios}
    parts = {
        part.name: {title: costs[part.name] for title, costs in month.items() if costs[part.name]}
        for part in fields(Costs)
    }
    turns = amount(told.plan.turns_per_day)
    return page.page(
        "What turns cost",
        lead(told),
        [
            page.Section(
                f"At {turns} turns a day",
                [
                    page.table(_scenario_head(told), _scenario_rows(told), caption="Parts are those of a month."),
                    page.paragraph(told.energy),
                    page.figure(
                        charts.bars(
                            {part: bars for part, bars in parts.items() if bars}, unit=f"{told.currency} a month"
                        ),
                        f"What a month of {turns} turns a day is made of",
                    ),
                ],
            ),
            page.Section(
                "By turns a day",
                [
                    page.figure(by_turns, caption),
                    page.table(
                        ("here", "against", "outcome"),
                        [(found.here.title, found.there.title, found.told) for found in told.break_evens],
                        numbers_from=3,
                    ),
                ],
            ),
            page.Section(
                "What goes in",
                [
                    page.table(HEAD, _assumption_rows(told), numbers_from=len(HEAD)),
                    page.table(
                        _price_head(told),
                        _price_rows(told),
                        caption=f"Price table, {told.price_table}",
                        numbers_from=len(_price_head(told)),
                    ),
                ],
            ),
            page.Section("How to read it", [page.paragraph(words) for words in told.notes]),
        ],
        told.to_dict(),
    )


POINTS = 48
STEPS = 4
"""So many machines more are drawn upright."""


def _lines(told: Report) -> tuple[str, str]:
    """A month by turns a day, with each point at which the machine begins to pay; and what that shows.

    Of many models the dearest beside the small one here, and the cheapest and the dearest alone.
    """
    turns, local = told.plan.turns_per_day, told.scenarios[0]
    cheapest, dearest = told.prices[0].model, told.prices[-1].model
    names = (local.name, f"cascade {dearest}", f"cloud {cheapest}", f"cloud {dearest}")
    shown = [one for one in told.scenarios if one.name in names]
    found = [one for one in told.break_evens if one.here is local and one.kind == "above" and one.there in shown]
    least = min(1.0, turns)
    most = max([10 * turns, *(3 * (one.turns_per_day or 0) for one in found)])
    ratio = (most / least) ** (1 / (POINTS - 1))
    steps = [local.capacity * machines for machines in range(1, STEPS + 1) if local.capacity * machines < most]
    edges = [edge for step in steps for edge in (step, step * (1 + 1e-6))]
    across = sorted({*(least * ratio**number for number in range(POINTS)), turns, *edges})
    series = {}
    for one in shown:
        months = [(each, one.at(each).total * MONTH_DAYS) for each in across]
        if points := [point for point in months if point[1] > 0]:  # nothing has no place on such an axis
            series[one.title] = points
    marks = [(each, local.at(each).total * MONTH_DAYS, count(each)) for one in found if (each := one.turns_per_day)]
    drawn = charts.lines(series, x="turns a day", y=f"{told.currency} a month", log_x=True, log_y=True, marks=marks)
    marked = " Diamonds, with their turns a day: from there on all here is cheaper." if marks else ""
    return drawn, f"A month, by turns a day; where all here takes one machine more, there is a step.{marked}"
