"""What kept turns tell of later ones: how many a day, how many escalate, tokens, speeds and watts.

Knows the dictionary of a turn, as the chat keeps it and as `smallfirst ask --json` prints it; knows no file
(`receipt_files`) and no money. A turn may be old or broken off: what it does not tell is taken from the others, and each
figure says from how many it comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from rag.energy import FROM_COMPUTING_TIME
from rag.errors import UserError
from rag.lab.assumptions import LEGS
from rag.models.backend import HERE
from rag.turn.bill import COMPUTING, WRITING

Turn = Mapping[str, Any]

COUNTED = ("input_tokens", "output_tokens")
MOST = 1e12


@dataclass(frozen=True)
class Figure:
    value: float
    of: str
    """From what: "mean of 12 turns"."""


@dataclass(frozen=True)
class Energy:
    """Where the joules of the receipts come from. Old receipts do not say; theirs are watts x seconds, an estimate."""

    measured: int
    estimated: int
    unknown: int
    """Receipts without joules; of these, those in which no model computed here are left out."""
    sources: tuple[str, ...]
    """Of the ones that are used: the measured ones if there are any, or else the estimates."""


@dataclass(frozen=True)
class Receipts:
    turns: int
    broken_off: int
    """Stopped or failed: they count as turns of a day, and for nothing else."""
    first: date | None
    last: date | None
    figures: Mapping[str, Figure]
    """Under the names of `rag.lab.assumptions.Plan`, as far as the turns tell them."""
    energy: Energy

    def to_dict(self) -> dict[str, Any]:
        return {
            "turns": self.turns,
            "broken_off": self.broken_off,
            "first": None if self.first is None else self.first.isoformat(),
            "last": None if self.last is None else self.last.isoformat(),
            "energy": {
                "measured": self.energy.measured,
                "estimated": self.energy.estimated,
                "unknown": self.energy.unknown,
                "sources": list(self.energy.sources),
            },
        }


def from_turns(turns: Iterable[Turn]) -> Receipts:
    """Means over the turns; a turn may have `asked_at` (ISO 8601) beside its own keys. UserError if there is none.

    - turns_per_day: turns with a date / days from the first date to the last, both counted, UTC.
    - asked_rate: turns in which a model was asked / turns; in the others the documents were silent. Of whole turns in
      Auto, or of all whole ones where there are none in Auto.
    - escalation_rate: whole turns in Auto in which the larger model was asked / whole turns in Auto.
    - {leg}_input_tokens, {leg}_output_tokens: means over the turns in which the leg was asked and its server counted. A
      draft that was given up early was not counted; the mean is that of whole ones.
    - {leg}_read_speed, {leg}_write_speed: tokens / seconds until the first token, tokens / seconds after it, as sums
      over the turns of which all text stayed on this machine.
    - watts: joules / seconds in which a model computed here, as sums. As soon as some receipts were measured, the
      estimates of the others count for nothing.
    """
    kept = list(turns)
    if not kept:
        raise UserError(
            "There are no receipts: no turn was kept here yet. Chat first, name files of turns with --receipts FILE, or"
            " leave --receipts out for a forecast."
        )
    whole = [turn for turn in kept if _is_whole(turn)]
    figures: dict[str, Figure] = {}
    dates = sorted(day for turn in kept if (day := _day(turn)) is not None)
    if dates:
        days = (dates[-1] - dates[0]).days + 1
        told = f"{_turns(len(dates))} in {days:,} day{'' if days == 1 else 's'}"
        figures["turns_per_day"] = Figure(len(dates) / days, told)
    auto = [turn for turn in whole if turn.get("mode") == "auto"]
    if base := auto or whole:
        asked = sum(any(_asked(turn, leg) for leg in LEGS) for turn in base)
        figures["asked_rate"] = Figure(asked / len(base), f"{asked:,} of {_turns(len(base))}")
    if auto:
        larger = sum(_asked(turn, "llm") for turn in auto)
        figures["escalation_rate"] = Figure(larger / len(auto), f"{larger:,} of {_turns(len(auto))} in Auto")
    for leg in LEGS:
        figures |= _of_leg(whole, leg)
    energy, watts = _power(whole)
    if watts is not None:
        figures["watts"] = watts
    first, last = (dates[0], dates[-1]) if dates else (None, None)
    return Receipts(len(kept), len(kept) - len(whole), first, last, figures, energy)


def _of_leg(turns: Sequence[Turn], leg: str) -> dict[str, Figure]:
    read: list[tuple[float, float]] = []
    speeds = [0.0, 0.0, 0.0, 0.0]
    timed = 0
    for turn in turns:
        tokens = _tokens(turn, leg)
        if tokens is None:
            continue
        read.append(tokens)
        until_first_s, after_s = _seconds(turn, ("first_token",), leg), _seconds(turn, WRITING, leg)
        if _stayed(turn) and until_first_s and after_s:
            timed += 1
            for place, value in enumerate((tokens[0], until_first_s, tokens[1], after_s)):
                speeds[place] += value
    figures = {}
    for place, name in enumerate(COUNTED):
        if read:
            mean = sum(tokens[place] for tokens in read) / len(read)
            figures[f"{leg}_{name}"] = Figure(mean, f"mean of {_turns(len(read))}")
    if speeds[0] and speeds[2]:
        figures[f"{leg}_read_speed"] = Figure(speeds[0] / speeds[1], f"over {_turns(timed)}")
        figures[f"{leg}_write_speed"] = Figure(speeds[2] / speeds[3], f"over {_turns(timed)}")
    return figures


def _power(turns: Sequence[Turn]) -> tuple[Energy, Figure | None]:
    measured: list[tuple[float, float, str]] = []
    estimated: list[tuple[float, float, str]] = []
    unknown = 0
    for turn in turns:
        seconds = sum(_seconds(turn, COMPUTING, leg) for leg in LEGS) if _stayed(turn) else 0.0
        if not seconds:
            continue
        bill = _mapping(turn.get("bill"))
        joules = _number(bill.get("energy_j"))
        if joules is None:
            unknown += 1
        elif bill.get("energy_measured") is True:
            measured.append((joules, seconds, str(bill.get("energy_source") or "nobody says by what")))
        else:
            estimated.append((joules, seconds, str(bill.get("energy_source") or FROM_COMPUTING_TIME)))
    used = measured or estimated
    sources = tuple(dict.fromkeys(source for _, _, source in used))
    energy = Energy(len(measured), len(estimated), unknown, sources)
    seconds = sum(one[1] for one in used)
    if not seconds:
        return energy, None
    how = "measured" if measured else "estimated"
    told = f"{_turns(len(used))}, {how}: {', '.join(source.removeprefix(f'{how} ') for source in sources)}"
    return energy, Figure(sum(one[0] for one in used) / seconds, told)


def _is_whole(turn: Turn) -> bool:
    return "answer" in turn and not turn.get("stopped") and not turn.get("error")


def _stayed(turn: Turn) -> bool:
    """Which of two models was elsewhere a turn does not tell; so if one was, what computed here is not known."""
    return turn.get("where") in (HERE, None)


def _asked(turn: Turn, leg: str) -> bool:
    return any(draft.get("leg") == leg for draft in _list(turn, "drafts")) or any(
        span.get("leg") == leg and span.get("name") == "first_token" for span in _spans(turn)
    )


def _tokens(turn: Turn, leg: str) -> tuple[float, float] | None:
    """Read and written by the leg; None where it was not asked or not all of it was counted."""
    read = written = 0.0
    drafts = [draft for draft in _list(turn, "drafts") if draft.get("leg") == leg]
    for draft in drafts:
        usage = _mapping(draft.get("usage"))
        counts = [_number(usage.get(name)) for name in COUNTED]
        if counts[0] is None or counts[1] is None:
            return None
        read, written = read + counts[0], written + counts[1]
    return (read, written) if drafts else None


def _seconds(turn: Turn, names: Sequence[str], leg: str) -> float:
    spans = (span for span in _spans(turn) if span.get("leg") == leg and span.get("name") in names)
    return sum(_number(span.get("duration_ms")) or 0.0 for span in spans) / 1000


def _day(turn: Turn) -> date | None:
    try:
        at = datetime.fromisoformat(str(turn.get("asked_at") or ""))
    except ValueError:
        return None
    return at.date() if at.tzinfo is None else at.astimezone(UTC).date()


def _spans(turn: Turn) -> list[Mapping[str, Any]]:
    return _list(_mapping(turn.get("trace")), "spans")


def _list(turn: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = turn.get(name)
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list | tuple) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    """What is below 0 or beyond all sense is no count, no time and no energy."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST:
        return None
    return float(value)


def _turns(count: int) -> str:
    return f"{count:,} turn{'' if count == 1 else 's'}"
