"""A leg whose model is not here: it writes nothing, or what was written elsewhere.

So a whole turn of the product can run (what is found, how it is worded, how an answer is judged) without asking anybody. It
knows no model and no server.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from rag.models.backend import HERE, Draft, Message, Piece
from rag.models.places import LegName
from rag.models.state import State
from rag.trace import Trace


class StandIn:
    """A leg and its backend in one, always ready."""

    runs_on = ""
    remote = leaves = False
    where = HERE
    installed = True
    pid: int | None = None
    state = State("ready")

    def __init__(
        self, name: LegName, context_tokens: int | None, max_tokens: int, *, model: str = "", examples: bool = False
    ) -> None:
        self.name: LegName = name
        self.leg: str = name
        self.model = model
        self.context_tokens = context_tokens
        self.max_tokens = max_tokens
        self.examples = examples

    def written(self) -> Draft:
        """What it has to say, whatever it is asked."""
        return Draft(self.leg, self.model, "", finish_reason="stop", runs_on=self.runs_on)

    def start(self) -> None:
        pass

    async def changes(self) -> AsyncGenerator[State, None]:
        yield self.state

    async def backend(self) -> "StandIn":
        return self

    async def stream(
        self,
        messages: list[Message],
        *,
        max_tokens: int,
        trace: Trace,
        temperature: float = 0,
        seed: int | None = None,
    ) -> AsyncGenerator[Piece, None]:
        yield self.written()


@dataclass(frozen=True)
class StandIns:
    """Both legs of a turn that asks nobody."""

    slm: StandIn
    llm: StandIn
