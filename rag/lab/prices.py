"""What clouds charge for tokens: Price, from a table that is dated and can be edited.

Knows the table's form and tells what is wrong with one; knows no turn and no machine. The table that is shipped beside
this file holds list prices, each with the day on which it was read and where its provider publishes it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rag.errors import UserError

SHIPPED = Path(__file__).with_name("prices.json")
OLD_DAYS = 365
MOST = 1e6
"""A higher price of a million tokens is a mistake."""
ALL = "all"


@dataclass(frozen=True)
class Price:
    """Of a million tokens of one model, in `currency`."""

    model: str
    provider: str
    input: float
    cached_input: float | None
    """Of what is read from the provider's cache; None where no other price is known, and the full one is paid."""
    output: float
    currency: str
    as_of: date
    source: str
    """Where the provider publishes it."""
    note: str = ""

    def cost(self, input_tokens: float, output_tokens: float, cached_share: float = 0.0) -> float:
        """Of one request: ((1 - s) x read x input + s x read x cached input + written x output) / 1,000,000.

        `cached_share` is s, the share of what is read that the provider has in its cache, 0 to 1.
        """
        cached = self.input if self.cached_input is None else self.cached_input
        read = input_tokens * ((1 - cached_share) * self.input + cached_share * cached)
        return (read + output_tokens * self.output) / 1e6

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "provider": self.provider,
            "input": self.input,
            "cached_input": self.cached_input,
            "output": self.output,
            "currency": self.currency,
            "as_of": self.as_of.isoformat(),
            "source": self.source,
            "note": self.note,
        }


def load(path: Path = SHIPPED) -> list[Price]:
    """The rows of a table, in its order; at least one. UserError names the row and the field that is wrong.

    A JSON list of rows, or an object that has it under `prices`.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"The price table {path} cannot be read: {error.strerror}. Name another with --prices."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"The price table {path} is not JSON ({error}). Compare it with {SHIPPED}.") from None
    rows = told.get("prices") if isinstance(told, dict) else told
    if not isinstance(rows, list) or not rows:
        raise UserError(f"The price table {path} has no list of prices. Compare it with {SHIPPED}.")
    prices = [_price(row, f"The price table {path}, row {number}") for number, row in enumerate(rows, 1)]
    for number, price in enumerate(prices, 1):
        if price.model in (other.model for other in prices[: number - 1]):
            raise UserError(f"The price table {path}, row {number}: {price.model} is there twice. Leave one of them.")
    return prices


def chosen(prices: Sequence[Price], names: Sequence[str], input_tokens: float, output_tokens: float) -> list[Price]:
    """Those of the names, cheapest first for a request of so many tokens; the cheapest and the dearest if none is named.

    The name `all` stands for every one. UserError for a name that the table has not.
    """

    def of_request(price: Price) -> float:
        return price.cost(input_tokens, output_tokens)

    known = {price.model: price for price in prices}
    for name in names:
        if name not in known and name != ALL:
            raise UserError(
                f"The price table has no {name}. It has: {', '.join(known)}. Choose with --cloud, or add it."
            )
    if ALL in names:
        return sorted(prices, key=of_request)
    picked = [known[name] for name in names] or [min(prices, key=of_request), max(prices, key=of_request)]
    return sorted({price.model: price for price in picked}.values(), key=of_request)


def one_currency(prices: Sequence[Price], named: str | None) -> str:
    """The currency of all; `named` is that of the user's own prices. UserError where there are two: none is converted."""
    currencies = list(dict.fromkeys(price.currency for price in prices))
    if len(currencies) > 1:
        raise UserError(
            f"The prices are in {' and '.join(currencies)}, and nothing is converted. Choose models in one with --cloud."
        )
    if named is not None and named != currencies[0]:
        raise UserError(
            f"--currency is {named} and the price table is in {currencies[0]}, and nothing is converted."
            f" Give your prices in {currencies[0]}, or a table in {named} with --prices."
        )
    return currencies[0]


def _price(row: Any, where: str) -> Price:
    if not isinstance(row, dict):
        raise UserError(f"{where} is not an object with the fields of a price. Compare it with {SHIPPED}.")
    model = _text(row, "model", where)
    where = f"{where} ({model})"
    try:
        as_of = date.fromisoformat(_text(row, "as_of", where))
    except ValueError:
        raise UserError(f"{where}: as_of is {row['as_of']!r}, not a day such as 2026-10-24. Change it.") from None
    return Price(
        model=model,
        provider=_text(row, "provider", where),
        input=_amount(row, "input", where),
        cached_input=None if row.get("cached_input") is None else _amount(row, "cached_input", where),
        output=_amount(row, "output", where),
        currency=_text(row, "currency", where),
        as_of=as_of,
        source=_text(row, "source", where),
        note=str(row.get("note") or ""),
    )


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {field} is {value!r}, not a text. Change it.")
    return value.strip()


def _amount(row: dict[str, Any], field: str, where: str) -> float:
    value = row.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        raise UserError(f"{where}: {field} is {value!r}, not a price of a million tokens. Change it.")
    return float(value)
