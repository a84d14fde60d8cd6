"""The page at `/ondevice`: its files, those of wllama, and the headers under which a browser gives them threads.

The page itself is written in the language that its request asks for, with all its words (rag/words) in a block of data:
nothing is shown before they are there, and they stay when the server goes. Knows files and headers; what the page does
stands in page/. Only what is named at the start is ever served.
"""

import html
import json
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from rag.serve.api_errors import ApiRoute
from rag.words import PLACEHOLDER, Text, catalogue, language_of, say, told

HERE: Final = Path(__file__).parent
INDEX: Final = HERE / "page" / "index.html"
WLLAMA: Final = "3.8.1"
"""The version in vendor/, brought by scripts/vendor_wllama.py."""

SHARED: Final = (
    "page.ms", "page.seconds", "page.megabytes", "page.megabytes_of", "page.speed", "page.first_token_after",
    "page.unit_page", "page.unit_slide", "page.unit_sheet", "page.because", "page.retry", "page.column_question",
    "turn.phase_judge", "turn.note_cut_off", "turn.reason_cut_off", "chat.stopped",
)  # fmt: skip
"""What this page says in the same words as the chat."""

MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}

POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",  # to compile WebAssembly, and nothing else that is not a file of ours
        "worker-src blob:",  # wllama writes its worker's code itself
        "connect-src 'self' blob:",  # blob: is the module kept in memory, for when the server has gone
        "style-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
# The first two together make the page cross-origin isolated, and only then a browser shares memory between threads.
ISOLATED: Final = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
}
ASKED_AGAIN: Final = "no-cache"
FOR_EVER: Final = "public, max-age=31536000, immutable"


def router() -> APIRouter:
    """`GET /ondevice`, `/ondevice/<file>`, `/ondevice/vendor/<version>/<file>`."""
    routes = APIRouter(route_class=ApiRoute, include_in_schema=False)
    own = {path.name: path for path in (HERE / "page").iterdir() if path.suffix in MEDIA_TYPES and path != INDEX}
    wllama = {path.name: path for path in (HERE / "vendor" / WLLAMA).iterdir()}

    @routes.api_route("/ondevice", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        language = language_of(request.headers.get("accept-language", ""))
        body, tag = _written(language)
        headers = {**ISOLATED, "Cache-Control": ASKED_AGAIN, "ETag": tag}
        headers |= {"Content-Language": language, "Vary": "Accept-Language"}
        known = request.headers.get("if-none-match", "")
        if tag in (part.strip().removeprefix("W/") for part in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=MEDIA_TYPES[".html"], headers=headers)

    @routes.get("/ondevice/")
    async def slash() -> Response:
        # The page's addresses are relative to the one without.
        return RedirectResponse("../ondevice", 308)

    @routes.api_route(f"/ondevice/vendor/{WLLAMA}/{{name}}", methods=["GET", "HEAD"])
    async def vendored(request: Request, name: str) -> Response:
        return _file(request, wllama, name, FOR_EVER)

    @routes.api_route("/ondevice/{name}", methods=["GET", "HEAD"])
    async def file(request: Request, name: str) -> Response:
        return _file(request, own, name, ASKED_AGAIN)

    return routes


def texts(language: str) -> dict[str, Text]:
    """All that the page says, by its full keys; English where that language has none."""
    return {key: text for key, text in catalogue(language).items() if key.startswith("ondevice.") or key in SHARED}


@cache
def _written(language: str) -> tuple[bytes, str]:
    """The page in that language, and its entity tag."""
    block = json.dumps(texts(language), ensure_ascii=False, separators=(",", ":"))
    values = {
        "language": language,
        "title": html.escape(told(say("ondevice.title"), language)),
        "noscript": html.escape(told(say("ondevice.noscript"), language)),
        "texts": block.replace("<", "\\u003c"),  # no text can end the block
    }
    body = PLACEHOLDER.sub(lambda found: values[found[1]], INDEX.read_text(encoding="utf-8")).encode()
    return body, f'"{sha256(body).hexdigest()[:20]}"'


def _file(request: Request, files: Mapping[str, Path], name: str, caching: str) -> Response:
    path = files.get(name)
    if path is None:
        raise HTTPException(404, f"There is no {request.url.path} here.")
    headers = {**ISOLATED, "Cache-Control": caching}
    media_type = MEDIA_TYPES.get(path.suffix, "text/plain; charset=utf-8")
    answer = FileResponse(path, media_type=media_type, headers=headers, stat_result=path.stat())
    if request.headers.get("if-none-match") == answer.headers["etag"]:
        return Response(status_code=304, headers={**headers, "ETag": answer.headers["etag"]})
    return answer
