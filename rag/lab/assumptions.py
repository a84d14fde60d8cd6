"""What a forecast goes from: Knob, Plan, and where each value comes from.

Knows which figures there are, their ranges, and what is assumed where neither the user nor receipts say; knows no
scenario and no price of a token. A default is either measured by what is in `benchmarks/`, or called assumed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rag.errors import UserError

if TYPE_CHECKING:
    from rag.lab.receipts import Receipts

LEGS = ("slm", "llm")

DAY_HOURS = 24
ASSUMED = "assumed"
ANSWERS = "benchmark: SQuAD 2.0"
SPEEDS = "benchmark: two cores"
BENCHMARKS = (
    "Benchmarks are those of this project: benchmarks/answers (Qwen2.5-Coder-0.5B and 1.5B, 400 questions of SQuAD 2.0)"
    " and benchmarks/speed.json (llama.cpp as installed, two cores). Your questions and your machine are others."
)
FLAG = "your flag"


@dataclass(frozen=True)
class Knob:
    """One thing that goes in: what it is, its range, and its default."""

    name: str
    unit: str
    what: str
    default: float | None
    """None: it follows from others."""
    source: str = ASSUMED
    most: float = 1e9
    """The least is 0."""
    zero: bool = True
    """May it be 0?"""
    money: bool = False
    """The unit is the currency, of which `unit` says the rest."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"


KNOBS = (
    Knob("turns_per_day", "turns a day", "turns of all users together", 200, zero=False),
    Knob("asked_rate", "share of turns", "turns that are put to a model; in the others the documents are silent", 1,
         most=1, zero=False),
    Knob("escalation_rate", "share of turns", "turns that go on to the larger model", 0.3825, ANSWERS, most=1),
    Knob("slm_input_tokens", "tokens", "read by the small model, each time", 187.3, ANSWERS),
    Knob("slm_output_tokens", "tokens", "written by the small model, each time", 15.9, ANSWERS),
    Knob("llm_input_tokens", "tokens", "read by the larger model, each time", 685.5, ANSWERS),
    Knob("llm_output_tokens", "tokens", "written by the larger model, each time", 21.1, ANSWERS),
    Knob("slm_read_speed", "tokens/s", "the small model reads here", 206.4, SPEEDS, zero=False),
    Knob("slm_write_speed", "tokens/s", "the small model writes here", 42.2, SPEEDS, zero=False),
    Knob("llm_read_speed", "tokens/s", "the larger model reads here", 88.3, SPEEDS, zero=False),
    Knob("llm_write_speed", "tokens/s", "the larger model writes here", 28.4, SPEEDS, zero=False),
    Knob("slm_seconds", "s", "the small model computes here, each time (default: tokens / speeds)", None, most=1e6),
    Knob("llm_seconds", "s", "the larger model computes here, each time (default: tokens / speeds)", None, most=1e6),
    Knob("watts", "W", "the machine draws while a model computes (default: RAG_WATTS)", None, most=1e6),
    Knob("joules_per_turn", "J", "a turn takes when both models are here (default: watts x seconds)", None),
    Knob("idle_watts", "W", "the machine draws while it waits", 5, most=1e6),
    Knob("hours_on", "h a day", "the machine is switched on", DAY_HOURS, most=DAY_HOURS, zero=False),
    Knob("kwh_price", "a kWh", "electricity", 0.25, money=True),
    Knob("hardware_price", "a machine", "on which both models run", 800, money=True),
    Knob("small_hardware_price", "a machine", "on which the small model alone runs (default: the same)", None,
         money=True),
    Knob("life_years", "years", "a machine is used, and loses its price evenly", 4, most=100, zero=False),
    Knob("other_per_month", "a month", "whatever else a machine costs: a place, upkeep, somebody's time", 0, money=True),
    Knob("cached_share", "share of tokens", "of what a cloud reads is billed as cached", 0, most=1),
)  # fmt: skip
KNOB = {knob.name: knob for knob in KNOBS}


@dataclass(frozen=True)
class Plan:
    """A value for each of `KNOBS`, in its unit. `plan` sees to their ranges."""

    turns_per_day: float
    asked_rate: float
    escalation_rate: float
    slm_input_tokens: float
    slm_output_tokens: float
    llm_input_tokens: float
    llm_output_tokens: float
    slm_read_speed: float
    slm_write_speed: float
    llm_read_speed: float
    llm_write_speed: float
    slm_seconds: float
    llm_seconds: float
    watts: float
    joules_per_turn: float
    idle_watts: float
    hours_on: float
    kwh_price: float
    hardware_price: float
    small_hardware_price: float
    life_years: float
    other_per_month: float
    cached_share: float

    @property
    def seconds_per_turn(self) -> float:
        """Both models here: asked x small model's seconds + escalated x larger model's."""
        return self.small_seconds_per_turn + self.escalation_rate * self.llm_seconds

    @property
    def small_seconds_per_turn(self) -> float:
        return self.asked_rate * self.slm_seconds


@dataclass(frozen=True)
class Assumption:
    """A value as it is shown."""

    name: str
    value: float
    unit: str
    source: str
    what: str
    flag: str


@dataclass(frozen=True)
class Planned:
    """A plan, and for each of its values where it comes from."""

    plan: Plan
    sources: Mapping[str, str]

    def own(self, *names: str) -> bool:
        """Did the user give one of them?"""
        return any(self.sources[name] == FLAG for name in names)

    def assumptions(self, currency: str) -> list[Assumption]:
        """In the order of `KNOBS`, without the speeds that seconds of the user's own make idle."""
        idle = {f"{leg}_{speed}" for leg in LEGS if self.own(f"{leg}_seconds") for speed in SPEED}
        return [
            Assumption(
                knob.name,
                getattr(self.plan, knob.name),
                f"{currency} {knob.unit}" if knob.money else knob.unit,
                self.sources[knob.name],
                knob.what.partition(" (")[0],
                knob.flag,
            )
            for knob in KNOBS
            if knob.name not in idle
        ]


SPEED = ("read_speed", "write_speed")
TWICE = (*((f"{leg}_seconds", f"{leg}_{speed}") for leg in LEGS for speed in SPEED), ("joules_per_turn", "watts"))
"""Pairs of which the first makes the second idle."""


def plan(given: Mapping[str, float | None], receipts: "Receipts | None", *, watts: float) -> Planned:
    """Each value is the user's own (`given`), else that of the receipts, else what is assumed or follows from others.

    `watts` are those of the settings; 0 says that nobody knows. Values that cannot be are a UserError.
    """
    own = {name: value for name, value in given.items() if value is not None}
    for name, value in own.items():
        _check(KNOB[name], value)
    for one, other in TWICE:
        if one in own and other in own:
            raise UserError(f"{KNOB[one].flag} and {KNOB[other].flag} say the same in two ways. Leave one of them out.")
    told = receipts.figures if receipts is not None else {}
    values: dict[str, float] = {}
    sources: dict[str, str] = {}

    def take(name: str, value: float, source: str) -> None:
        values[name], sources[name] = value, source

    for knob in KNOBS:
        if knob.name in own:
            take(knob.name, own[knob.name], FLAG)
        elif knob.name in told and _fits(knob, told[knob.name].value):
            take(knob.name, told[knob.name].value, f"receipts: {told[knob.name].of}")
        elif knob.default is not None:
            take(knob.name, knob.default, knob.source)

    _share_out(values, sources, take)
    for leg in LEGS:
        if f"{leg}_seconds" not in values:
            reading_s, writing_s = (
                values[f"{leg}_{count}_tokens"] / values[f"{leg}_{speed}"]
                for count, speed in zip(("input", "output"), SPEED, strict=True)
            )
            take(f"{leg}_seconds", reading_s + writing_s, "follows: tokens / speeds")
    seconds = values["asked_rate"] * values["slm_seconds"] + values["escalation_rate"] * values["llm_seconds"]
    if "joules_per_turn" in own:
        if not seconds:
            raise UserError("--joules-per-turn is given, and no model computes. Give --slm-seconds or --llm-seconds.")
        take("watts", own["joules_per_turn"] / seconds, "follows: joules / seconds of a turn")
    else:
        if "watts" not in values:
            if not watts:
                raise UserError("Nobody knows what this machine draws: RAG_WATTS is 0. Give --watts.")
            take("watts", watts, "assumed: RAG_WATTS")
        take("joules_per_turn", values["watts"] * seconds, "follows: watts x seconds of a turn")
    if sources["idle_watts"] == ASSUMED and values["idle_watts"] > values["watts"]:
        take("idle_watts", values["watts"], "assumed: no more than while a model computes")
    if values["idle_watts"] > values["watts"]:
        raise UserError(
            f"--idle-watts is {values['idle_watts']:g}, more than the {values['watts']:g} W while a model computes"
            f" ({sources['watts']}). Change --idle-watts, or give --watts."
        )
    if "small_hardware_price" not in values:
        take("small_hardware_price", values["hardware_price"], "follows: the same machine")
    return Planned(Plan(**values), sources)


def _share_out(
    values: Mapping[str, float], sources: Mapping[str, str], take: Callable[[str, float, str], None]
) -> None:
    """No more turns go on to the larger model than are put to any."""
    asked, escalated = values["asked_rate"], values["escalation_rate"]
    if escalated <= asked:
        return
    if sources["escalation_rate"] == KNOB["escalation_rate"].source:
        take("escalation_rate", asked, "assumed: no more than are put to a model")
        return
    raise UserError(
        f"--escalation-rate is {escalated:g} ({sources['escalation_rate']}), more than --asked-rate, {asked:g}"
        f" ({sources['asked_rate']}). Change one of them."
    )


def _fits(knob: Knob, value: float) -> bool:
    return 0 <= value <= knob.most and bool(value or knob.zero)  # and so is a number


def _check(knob: Knob, value: float) -> None:
    if not _fits(knob, value):
        least = "at least 0" if knob.zero else "more than 0"
        raise UserError(f"{knob.flag} is {value:g}. It is {least} and at most {knob.most:,g} ({knob.unit}).")
