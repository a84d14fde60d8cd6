"""What can be asked about: the shared folder, and what one session has attached.

Knows folders and uploads; how a file becomes passages is `documents`', how passages are ranked is `index`'s.
"""

from collections.abc import Iterable
from pathlib import Path

from rag.corpus.documents import SUFFIXES, Document, Ingest, Passage, read, split
from rag.corpus.index import BM25Index
from rag.errors import DocumentError, UserError


class Library:
    """The shared folder, read once into an index. `reports` tells what became of each file."""

    def __init__(self, folder: Path, *, passage_chars: int) -> None:
        if not folder.is_dir():
            raise UserError(f"No folder of documents at {folder}. Make it, or set RAG_DOCS (or --docs) to another.")
        self.folder = folder
        self.passage_chars = passage_chars
        self.reports: list[Ingest] = []
        passages: list[Passage] = []
        root = folder.resolve()
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
            source = path.relative_to(folder).as_posix()
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                continue
            try:
                if not path.resolve().is_relative_to(root):
                    raise DocumentError("It is a link to a file outside the folder. Copy the file in.")
                if not path.is_file():
                    continue
                report, found = ingest(path.read_bytes(), source, passage_chars)
            except DocumentError as error:
                report, found = Ingest(source, error=str(error)), []
            except OSError as error:
                report, found = Ingest(source, error=f"{error.strerror}. Check the file and its permissions."), []
            self.reports.append(report)
            passages.extend(found)
        self.index = BM25Index(passages)

    @property
    def files(self) -> int:
        """How many files were read."""
        return sum(report.error is None for report in self.reports)


class Attachments:
    """The documents of one session: they join that session's index only, and stay while the session does."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._documents: dict[str, tuple[Ingest, list[Passage]]] = {}
        self.index = library.index

    def add(self, data: bytes, source: str) -> Ingest:
        """Read an upload and make it searchable at once. A file of the same name takes the earlier one's place.

        Raises DocumentError; then nothing has changed.
        """
        report, passages = ingest(data, source, self._library.passage_chars)
        self._documents[source] = (report, passages)
        self._rebuild()
        return report

    def remove(self, source: str) -> None:
        """Forget an upload; a name that is not attached is a UserError."""
        if source not in self._documents:
            raise UserError(f"{source} is not attached. Attached: {', '.join(self.sources) or 'nothing'}.")
        del self._documents[source]
        self._rebuild()

    @property
    def sources(self) -> list[str]:
        return list(self._documents)

    def opening(self, source: str) -> list[Passage]:
        """The passages of one upload in reading order."""
        return self._documents[source][1]

    def _rebuild(self) -> None:
        # One index over folder and uploads, so that all passages share one set of statistics and scores compare.
        uploads: Iterable[Passage] = (p for _, passages in self._documents.values() for p in passages)
        self.index = BM25Index([*self._library.index.passages, *uploads])


def ingest(data: bytes, source: str, passage_chars: int) -> tuple[Ingest, list[Passage]]:
    """Read and split one file."""
    document: Document = read(data, source)
    passages = split(document, passage_chars)
    report = Ingest(source, len(document.text), len(passages), document.pages, document.blank_pages)
    return report, passages
