"""Which engine passages get: by their number, and whether they stay in memory or are kept in a store.

Knows the engines and the store; knows nothing of folders, files or sessions.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rag.corpus.documents import Passage
from rag.corpus.index import Engine, SmallEngine, TantivyEngine
from rag.corpus.store import Store

log = logging.getLogger("smallfirst")

# Removed passages stay in tantivy's statistics until it merges; with a share above this it is built anew.
MOST_REMOVED = 0.2


class Pile:
    """A shelf in memory."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages

    def passages(self, numbers: Sequence[int]) -> list[Passage | None]:
        return [self._passages[number] for number in numbers]


SMALL = 500
"""Up to so many passages rank-bm25 answers within a millisecond (benchmarks/retrieval.json); above, tantivy does."""


def engine(passages: Sequence[Passage]) -> Engine:
    """The engine for passages that stay in memory."""
    if len(passages) <= SMALL:
        return SmallEngine(passages)
    large = TantivyEngine(Pile(passages), languages=Counter(passage.language for passage in passages))
    large.change((), ((number, 0, passage) for number, passage in enumerate(passages)))
    return large


def stored_engine(
    store: Store, home: Path, now: Engine | None = None, *, languages: Mapping[str, int] | None = None
) -> Engine:
    """The engine for what a store holds; `now` is the one in use, which is changed rather than built anew if it can be.

    tantivy's folder carries the generation of the store that it shows. One that shows another, because a process was
    killed between the two, is brought up to date or built anew: never trusted.
    """
    languages = store.languages() if languages is None else languages
    size = len(store)
    if size <= SMALL:
        return SmallEngine(store.all())
    generation, kept = store.generation, store.meta("engine_folder")
    folder = home / kept if kept else None
    files = {file.number for file in store.files().values()}
    held = {int(number) for number in (store.meta("engine_files") or "").split()}
    removed = int(store.meta("engine_removed") or 0) + len(held - files)
    if folder is not None and folder.is_dir() and removed <= MOST_REMOVED * len(files):
        with suppress(ValueError, OSError):
            if isinstance(now, TantivyEngine) and now.folder == folder:
                large = now
            else:
                large = TantivyEngine(store, folder, languages=languages)
            if store.meta("engine_generation") != str(generation):
                store.note(engine_generation="changing")
                # Also what was there: after a kill between the two commits, it may be in already.
                come = files - held
                large.change((held - files) | come, store.numbered(come))
                _note_engine(store, generation, kept or "", files, removed)
            large.look_again(languages)
            if len(large) == size:
                return large
        log.warning("The engine's files in %s do not show what was read; they are made anew.", home)
    for old in home.glob("engine-*"):
        shutil.rmtree(old, ignore_errors=True)
    name = f"engine-{generation}-{os.getpid()}"
    large = TantivyEngine(store, home / name, languages=languages)
    large.change((), store.numbered(), heap_mb=128)
    _note_engine(store, generation, name, files, 0)
    return large


def _note_engine(store: Store, generation: int, folder: str, files: set[int], removed: int) -> None:
    store.note(
        engine_generation=generation,
        engine_folder=folder,
        engine_files=" ".join(map(str, sorted(files))),
        engine_removed=removed,
    )
