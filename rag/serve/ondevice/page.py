"""The page at `/ondevice`: its files, those of wllama, and the headers under which a browser gives them threads.

Knows files and headers; what the page does stands in page/. Only what is named at the start is ever served.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, Response

from rag.serve.api_errors import ApiRoute

HERE: Final = Path(__file__).parent
WLLAMA: Final = "3.8.1"
"""The version in vendor/, brought by scripts/vendor_wllama.py."""

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
    own = {path.name: path for path in (HERE / "page").iterdir() if path.suffix in MEDIA_TYPES}
    wllama = {path.name: path for path in (HERE / "vendor" / WLLAMA).iterdir()}

    @routes.api_route("/ondevice", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return _file(request, own, "index.html", ASKED_AGAIN)

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
