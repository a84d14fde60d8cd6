"""The messages that a turn would send to a larger model, without sending them.

A whole turn of the product runs, so that what is found and how it is worded is the turn's own; but its legs write nothing.
Knows no model and no server.
"""

from contextlib import aclosing

from rag.corpus.library import Library
from rag.models.standin import StandIn, StandIns
from rag.settings import Settings
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
    pair = StandIns(StandIn("slm", context_tokens, max_tokens), StandIn("llm", context_tokens, max_tokens))
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
