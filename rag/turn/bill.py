"""What one turn used: tokens, money, energy, and of this machine its processor and memory.

Knows the drafts, the trace, the prices that the user set and what was sampled while models computed; knows no model, and
asks nobody. A figure that these do not give is None or left out, never a guess. Energy that nothing measured is an estimate
of one assumption: `watts` is what the user says this machine draws while all of its cores compute.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rag.energy import FROM_COMPUTING_TIME, Energy, total
from rag.models.backend import Draft
from rag.resources import Used, together
from rag.settings import Settings
from rag.trace import Trace

COMPUTING = ("first_token", "thinking", "completion")
WRITING = ("thinking", "completion")
"""The spans in which a model reads and writes; in the others we wait for somebody else."""


@dataclass(frozen=True)
class Price:
    """Of a million tokens read and of a million written, in the currency of settings; None where nobody said."""

    input: float | None
    output: float | None

    @classmethod
    def of(cls, leg: str, settings: Settings, *, remote: bool) -> "Price":
        """As it was set; a model that runs here costs nothing unless it was."""
        unset = None if remote else 0.0
        input, output = getattr(settings, f"{leg}_input_price"), getattr(settings, f"{leg}_output_price")
        return cls(unset if input is None else input, unset if output is None else output)

    def cost(self, input_tokens: int | None, output_tokens: int | None) -> float | None:
        """(input tokens x input price + output tokens x output price) / 1,000,000; None if one of them is not known.

        How much there was of what costs nothing need not be known.
        """
        whole = 0.0
        for price, tokens in ((self.input, input_tokens), (self.output, output_tokens)):
            if price == 0:
                continue
            if price is None or tokens is None:
                return None
            whole += price * tokens / 1e6
        return whole


@dataclass(frozen=True)
class Bill:
    """One turn's use, a rejected draft's too: it was computed."""

    input_tokens: int | None
    """Read by all models together, as their servers counted; None where none of them did."""
    output_tokens: int | None
    """Written by all models together; of a draft that was hung up on, those that were seen."""
    at_least: bool
    """More tokens were used than are counted: a server did not report, or was hung up on before it did."""
    tokens_per_s: float | None
    """Of the answering model, after its first token: (tokens - 1) / seconds in which it thought and wrote."""
    cost: float | None
    """In `currency`; None where a price or a count is missing that it needs."""
    currency: str
    energy: Energy
    """While a model computed here: measured, or watts x CPU seconds / cores; of a server that is not ours, whose CPU time
    nobody knows, watts x seconds. Joules are None where nothing was measured and `watts` is 0.

    Neither a server on another machine nor the loading of a model is counted: the first draws its power elsewhere, and
    the second serves later turns too.
    """
    watts: float
    """Assumed by the user for estimates, not measured."""
    resources: Mapping[str, Used]
    """By leg, of those that computed here; the energies of one turn's legs were measured one after another."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "at_least": self.at_least,
            "tokens_per_s": None if self.tokens_per_s is None else round(self.tokens_per_s, 2),
            # A token can cost a ten-millionth.
            "cost": None if self.cost is None else round(self.cost, 10),
            "currency": self.currency,
            "cost_known": self.cost is not None,
            "energy_j": None if self.energy.joules is None else round(self.energy.joules, 3),
            "energy_measured": self.energy.measured,
            "energy_source": self.energy.source,
            "watts": self.watts,
            "resources": {leg: known for leg, used in self.resources.items() if (known := _known(used))},
        }


def bill(
    drafts: Sequence[Draft],
    trace: Trace,
    settings: Settings,
    *,
    remote: Collection[str] = (),
    sampled: Sequence[tuple[str, Used]] = (),
) -> Bill:
    """What a turn used, as far as it got; the last draft answers.

    `remote` are the legs on other machines, `sampled` what each request to a leg used here, in their order.
    """
    lost = _without_draft(drafts, trace)
    read = [draft.usage.input_tokens if draft.usage else None for draft in drafts]
    written = [_written(draft) for draft in drafts]
    costs = [
        Price.of(draft.leg, settings, remote=draft.leg in remote).cost(read[number], _reported(draft))
        for number, draft in enumerate(drafts)
    ]
    costs += [Price.of(leg, settings, remote=leg in remote).cost(None, None) for leg in lost]
    here = dict.fromkeys(leg for leg, _ in sampled if leg not in remote)
    resources = {leg: together(used for name, used in sampled if name == leg) for leg in here}
    return Bill(
        input_tokens=_sum(read, lost),
        output_tokens=_sum(written, lost),
        at_least=bool(lost) or any(draft.usage is None or draft.finish_reason is None for draft in drafts),
        tokens_per_s=_speed(drafts[-1], trace) if drafts else None,
        cost=None if None in costs else sum(cost for cost in costs if cost is not None),
        currency=settings.currency,
        energy=_energy(trace, settings.watts, remote, resources),
        watts=settings.watts,
        resources=resources,
    )


def _reported(draft: Draft) -> int | None:
    return draft.usage.output_tokens if draft.usage else None


def _written(draft: Draft) -> int | None:
    """Where the server did not count, the tokens that it showed; some servers show none."""
    return draft.usage.output_tokens if draft.usage else len(draft.tokens) or (0 if not draft.text else None)


def _sum(counts: Sequence[int | None], lost: Sequence[str]) -> int | None:
    """Of the known ones; 0 where no model was asked."""
    known = [count for count in counts if count is not None]
    return sum(known) if known or not (counts or lost) else None


def _without_draft(drafts: Sequence[Draft], trace: Trace) -> list[str]:
    """The leg of each answer that a model began and of which no draft is left: stopped, broken off, or written anew."""
    begun = Counter(span.leg for span in trace.spans if span.name == "first_token" and span.leg)
    return list((begun - Counter(draft.leg for draft in drafts)).elements())


def _speed(draft: Draft, trace: Trace) -> float | None:
    written = _written(draft)
    # The draft that stands is that leg's last.
    spans = [span for span in trace.spans if span.name in WRITING and span.leg == draft.leg]
    spans = spans[-2:] if len(spans) > 1 and spans[-2].name == "thinking" else spans[-1:]
    wrote_ms = sum(span.duration_ms or 0 for span in spans)
    if not wrote_ms or written is None or written < 2:
        return None
    return (written - 1) / (wrote_ms / 1000)


def _energy(trace: Trace, watts: float, remote: Collection[str], resources: Mapping[str, Used]) -> Energy:
    """Of the legs that computed here; 0 joules where none did."""
    computed_ms: dict[str, float] = {}
    for span in trace.spans:
        if span.name in COMPUTING and span.leg and span.leg not in remote:
            computed_ms[span.leg] = computed_ms.get(span.leg, 0.0) + (span.duration_ms or 0.0)
    if not computed_ms:
        return Energy(0.0 if watts else None, False, "")
    parts = []
    for leg, ms in computed_ms.items():
        if leg in resources and resources[leg].energy.joules is not None:
            parts.append(resources[leg].energy)
        elif watts:
            parts.append(Energy(watts * ms / 1000, False, FROM_COMPUTING_TIME))
    return total(parts)


def _known(used: Used) -> dict[str, float]:
    return {name: figure for name, figure in used.figures().items() if figure is not None}
