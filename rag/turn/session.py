"""What outlives a turn: history, attached documents, mode, and whether text may leave this machine.

One session is one conversation. It knows nothing of who carries it (a browser, a terminal) nor of how a turn is answered.
"""

from dataclasses import dataclass

from rag.corpus.library import Attachments, Library
from rag.settings import Mode, Remote


@dataclass(frozen=True)
class Exchange:
    """One earlier question and its answer."""

    id: str
    """The door's name for the question, so that an edited one can be found again."""
    question: str
    query: str
    """What was searched for, for people: the question, and the words that it carried over."""
    answer: str
    refused: bool = False
    """The answer was that it is not in the documents."""


class Session:
    """One conversation."""

    def __init__(self, library: Library, mode: Mode = "auto") -> None:
        self.mode: Mode = mode
        self.remote: Remote = library.settings.remote
        """Only with "allow" is a model on another machine asked; who "asks" has not been answered yet."""
        self.attachments = Attachments(library)
        self.history: list[Exchange] = []

    def remember(self, exchange: Exchange) -> None:
        self.history.append(exchange)

    def rewind(self, id: str) -> None:
        """Forget the exchange of that id and all after it, because its question was edited; an unknown id is new."""
        for place, exchange in enumerate(self.history):
            if exchange.id == id:
                del self.history[place:]
                return
