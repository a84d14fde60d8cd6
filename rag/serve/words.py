"""The words of the page: `GET /words`, and Chainlit's own texts in the same language.

Knows which language a browser gets. What is said in it stands in rag/words; Chainlit's texts in .chainlit/translations,
the welcome in chainlit_<language>.md. Every one of these is public: the page has words before somebody signs in.
"""

import json
from functools import cache
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rag.words import catalogue, language_of

CHAINLITS = ("/project/translations", "/project/settings")
"""Chainlit's routes that look for a file by the language in their query."""


def router() -> APIRouter:
    """`GET /words?language=<tag>`: all texts in the language that Content-Language names; without it, the header's."""
    routes = APIRouter()

    @routes.get("/words")
    async def words(request: Request, language: str | None = None) -> Response:
        asked = request.headers.get("accept-language", "") if language is None else language
        spoken = language_of(asked)
        body, tag = _page(spoken)
        # An update of the product is seen at the next visit, and costs the others nothing.
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Language": spoken, "Vary": "Accept-Language"}
        known = request.headers.get("if-none-match", "")
        if tag in (part.strip().removeprefix("W/") for part in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    return routes


class Tongue:
    """ASGI middleware: a browser's tag becomes the language that our files are named by.

    Chainlit looks for a welcome text by the whole tag (sv-SE) and for its own texts by the whole tag or its first part,
    which does not lead from zh-Hant-HK to zh-TW. A language that is not ours is left as it is: Chainlit may have it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith(CHAINLITS):
            query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            named = [(name, _ours(value) if name == "language" else value) for name, value in query]
            scope = {**scope, "query_string": urlencode(named).encode("ascii")}
        await self.app(scope, receive, send)


def _ours(tag: str) -> str:
    language = language_of(tag)
    return tag if language == "en" else language


@cache
def _page(language: str) -> tuple[bytes, str]:
    """The catalogue as it is sent, and its entity tag."""
    body = json.dumps(catalogue(language), ensure_ascii=False, separators=(",", ":")).encode()
    return body, f'"{sha256(body).hexdigest()[:20]}"'
