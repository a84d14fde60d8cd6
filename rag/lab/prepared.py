"""The messages that a turn would send to a larger model, without sending them.

A whole turn of the product runs, so that what is found and how it is worded is the turn's own; but its legs write nothing.
Knows no model and no server.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from rag.corpus.library import Library
from rag.models.backend import HERE, Draft, Message, Piece
from rag.models.places import LegName
from rag.models.state import State
from rag.settings import Settings
from rag.trace import Trace
from rag.turn import cascade
from rag.turn.prompt import Prompt
from rag.turn.session import Session


async def prepare(
    question: str, library: Library, settings: Settings, *, context_tokens: int | None, max_tokens: int
) -> Prompt | None:
    """The larger model's prompt for a first question, without the Yes or No that it is asked otherwise.

    Its evidence fits a window of `context_tokens` with `max_tokens` of answer. None where the documents are silent, so that
    no model would be asked. Raises RagError, as the turn would.
    """
    pair = _Pair(context_tokens, max_tokens)
    session = Session(library, "llm")
    unchecked = settings.model_copy(update={"check": False})
    built: Prompt | None = None
    try:
        turn = cascade.answer(question, session=session, legs=pair, settings=unchecked, fitted=None)
        async with aclosing(turn) as events:
            async for event in events:
                if isinstance(event, cascade.Failed):
                    raise event.error
                if isinstance(event, cascade.Answered):
                    built = event.turn.prompts.get("llm")
    finally:
        session.attachments.close()
    return built


class _Mute:
    """A leg, and its backend, that is always ready and writes nothing."""

    model = runs_on = ""
    examples = remote = leaves = False
    where = HERE
    installed = True
    state = State("ready")
    pid: int | None = None

    def __init__(self, name: LegName, context_tokens: int | None, max_tokens: int) -> None:
        self.name: LegName = name
        self.leg: str = name
        self.context_tokens = context_tokens
        self.max_tokens = max_tokens

    def start(self) -> None:
        pass

    async def changes(self) -> AsyncGenerator[State, None]:
        yield self.state

    async def backend(self) -> "_Mute":
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
        yield Draft(self.leg, self.model, "")


class _Pair:
    def __init__(self, context_tokens: int | None, max_tokens: int) -> None:
        self.slm = _Mute("slm", context_tokens, max_tokens)
        self.llm = _Mute("llm", context_tokens, max_tokens)
