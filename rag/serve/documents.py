"""The documents themselves, as bytes on their way out: which file a name means, and under which headers it leaves.

Knows the shared folder's names, by which citations name what they cite; a name is looked up among them and never becomes
a path. What somebody wrote is never run in this server's name: pages and scripts are plain text here, all else that a
browser does not show in a viewer of its own is saved. How a page is drawn, and what stands around a quote, is `sources`'.
"""

import asyncio
import hashlib
import os
import stat
from collections.abc import Hashable
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import quote as quoted

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from rag.corpus.documents import Ingest, Passage, shown
from rag.corpus.library import Library
from rag.corpus.pages import is_pdf
from rag.serve.api_errors import ApiError, ApiRoute, declared
from rag.serve.media import FILE_POLICY, MEDIA_TYPES
from rag.serve.visitors import VISITOR, Visitor
from rag.words import say, told

# The browser's own viewer is a page around the document, with styles and a plug-in; nothing else may be in it.
PDF_POLICY: Final = "default-src 'none'; object-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
BINARY: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}
SENT: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Its bytes: a PDF or a text to be shown, anything else to be saved.",
        "content": {kind: BINARY for kind in (*dict.fromkeys(MEDIA_TYPES.values()), "application/octet-stream")},
    }
}
"""For a route's `responses`: what `served` answers."""


def shared(library: Library, source: str) -> tuple[Ingest, Path] | None:
    """A document of the folder that was read, and its file, if that is still there and in the folder; blocks."""
    report = next((report for report in library.reports if report.source == source and report.error is None), None)
    if report is None:
        return None
    try:
        root = library.folder.resolve()
        # The name is the library's. What stands there now may be a link that was put in its place.
        path = (root / report.source).resolve(strict=True)
    except (OSError, RuntimeError):  # gone, or links in a circle
        return None
    return (report, path) if path.is_relative_to(root) else None


def address(passage: Passage, visitor: Visitor) -> str:
    """Where that visitor's browser reads the document of a passage of the folder, below this server's name."""
    page = "" if passage.page is None else f"#page={passage.page}"
    return f"{visitor.link(f'/v1/documents/{passage.source}')}{page}"


def version(file: Path | bytes, source: str) -> tuple[Hashable, bool] | None:
    """Something that is another whenever the file has changed, and whether it is a PDF; None where no file is that can be
    read. Blocks."""
    suffix = PurePosixPath(source).suffix.lower()
    if isinstance(file, bytes):
        return hashlib.sha256(file).digest(), is_pdf(file[:1024], suffix)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its other end
            return None
        with file.open("rb") as opened:
            status = os.fstat(opened.fileno())
            return (status.st_ino, status.st_size, status.st_mtime_ns), is_pdf(opened.read(1024), suffix)
    except OSError:
        return None


def served(file: Path | bytes, source: str, *, pdf: bool, texts_inline: bool = False) -> Response:
    """The bytes, typed by their name's ending: a PDF for the browser's viewer (`#page=3` is the browser's to read), with
    `texts_inline` a text to be read as it is, and any other kind to be saved."""
    name = PurePosixPath(source).name
    kind = MEDIA_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")
    text = texts_inline and kind.startswith("text/")
    if pdf:
        kind = "application/pdf"
    elif text:
        kind = "text/plain"
    saved = quoted(name, safe="", errors="replace")  # a name on a disk may be no Unicode
    headers = {
        "Content-Disposition": f"{'inline' if pdf or text else 'attachment'}; filename*=UTF-8''{saved}",
        "Content-Security-Policy": PDF_POLICY if pdf else FILE_POLICY,
        "Cache-Control": "private, no-store",
        "X-Content-Type-Options": "nosniff",
    }
    if isinstance(file, bytes):
        return Response(file, media_type=kind, headers=headers)
    return FileResponse(file, media_type=kind, headers=headers)


def router(library: Library) -> APIRouter:
    """`GET /v1/documents/{source}`: so that what a citation names has an address."""
    routes = APIRouter(route_class=ApiRoute)

    @routes.head("/v1/documents/{source:path}", include_in_schema=False)
    @routes.get(
        "/v1/documents/{source:path}", tags=["documents"], response_class=Response,
        responses={**SENT, **declared(400, 401, 404, 413, 429)},
    )  # fmt: skip
    async def document(source: str) -> Response:
        """A document of the shared folder, by the name under which citations name it."""
        found = await asyncio.to_thread(_found, library, source)
        if found is None:
            why = told(say("documents.unknown", name=shown(source)), VISITOR.get().language)
            raise ApiError(404, why, param="source")
        path, pdf = found
        return served(path, source, pdf=pdf, texts_inline=True)

    return routes


def _found(library: Library, source: str) -> tuple[Path, bool] | None:
    placed = shared(library, source)
    known = version(placed[1], source) if placed is not None else None
    return (placed[1], known[1]) if placed is not None and known is not None else None
