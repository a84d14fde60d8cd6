"""What answers behind the web doors of one process: the documents, callers' files, the models, and who hears of each turn.

Started and ended once, whichever doors there are: the chat with its API, or the API alone. Knows no route, no conversation
and no user.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Final

from rag import __version__, terminal
from rag.corpus.library import Library
from rag.metrics import Metrics
from rag.models.backend import Message
from rag.models.legs import Legs
from rag.models.places import LegName
from rag.serve.ending import when_server_ends
from rag.serve.files import Files
from rag.settings import Settings
from rag.telemetry import Telemetry
from rag.turn import prompt
from rag.turn.cascade import Observer

# A folder of scans would push everything else out of the terminal.
REPORTS_SHOWN: Final = 20


class Service:
    """`start` needs a running event loop, and `close` ends what it began."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.library = Library(settings)
        self.legs = Legs(settings)
        self.telemetry = Telemetry(settings.otlp_endpoint, __version__)
        self.metrics = Metrics(self.library, self.legs)
        self.observers: Sequence[Observer] = (self.telemetry, self.metrics)
        self.files = Files(settings)
        self.ending = asyncio.Event()
        """The server was asked to end: whoever is still sending comes to an end, too."""
        self._background: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bring the documents up to date and the models up; returns at once, and tells the terminal what becomes of it."""
        when_server_ends(self.ending.set)
        # The first look at the folder must not be over before somebody waits for its end.
        self.keep(asyncio.create_task(self._tell_documents()))
        self._watching = asyncio.create_task(self.library.watch())
        self.keep(asyncio.create_task(self._tell_models()))
        self.keep(asyncio.create_task(self.legs.start(pull_llm=self.settings.pull_llm, opening=self._opening)))

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.to_thread(self.files.close)
        await asyncio.to_thread(self.library.close)
        await self.legs.close()
        await asyncio.to_thread(self.telemetry.close)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """The event loop holds tasks weakly; one that nobody awaits must be held until it is done."""
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _opening(self, leg: LegName, examples: bool) -> list[Message]:
        large = leg == "llm"
        language = self.settings.answer_language
        return prompt.opening(large=large, examples=examples, checks=large and self.settings.check, language=language)

    async def _tell_models(self) -> None:
        await terminal.show_starting(self.legs.slm)
        await terminal.show_starting(self.legs.llm)
        for leg in (self.legs.slm, self.legs.llm):
            if leg.note:
                terminal.notices.print(leg.note, markup=False)

    async def _tell_documents(self) -> None:
        """Once the folder has been looked at: what can be asked about, and what cannot."""
        library, begun = self.library, False
        async with contextlib.aclosing(library.changes()) as changes:
            async for _ in changes:
                if begun and library.reading is None:
                    break
                begun = True
        incomplete = [report.line for report in library.reports if report.error or report.skipped or report.blank_pages]
        for line in incomplete[:REPORTS_SHOWN]:
            terminal.notices.print(line, markup=False)
        if len(incomplete) > REPORTS_SHOWN:
            terminal.notices.print(f"{len(incomplete) - REPORTS_SHOWN:,} more were not read whole.", markup=False)
        size = f"{library.files:,} documents, {len(library.index):,} passages"
        terminal.notices.print(f"{size} in {library.folder}", markup=False)
