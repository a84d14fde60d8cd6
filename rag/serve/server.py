"""The API on its own, without the chat: `smallfirst serve`. And what of it the chat's server carries too.

Knows which rooms answer programs, and what stands before them: the Gate (names, origins, sizes), the key's door, and how
often. It knows nothing of Chainlit and imports nothing of it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rag import __version__, terminal
from rag.serve import api, callers, documents, files, ondevice, readiness
from rag.serve.api_errors import ApiError
from rag.serve.ending import Server
from rag.serve.gate import EXPOSED, Gate, Rules, Uploads
from rag.serve.ports import check_port, shown_address
from rag.serve.service import Service
from rag.settings import Settings

DESCRIPTION: Final = (
    "Answers from a folder of documents: a small model first, a larger one when it must. The wire format is OpenAI's."
)
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def routers(service: Service) -> list[APIRouter]:
    """What programs ask for, wherever it is served."""
    answering = [
        api.router(service),
        files.router(service.files),
        documents.router(service.library),
        readiness.router(service),
        ondevice.router(service),
    ]
    return [*answering, unknown(answering)]


def unknown(known: Sequence[APIRouter]) -> APIRouter:
    """Whatever else is asked for below /v1: OpenAI's words, and no page."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/v1/{path:path}", methods=list(METHODS))
    async def nothing(request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        there = [route for router in known for route in router.routes if isinstance(route, APIRoute)]
        allowed = {method for route in there if route.path_regex.match(path) for method in route.methods or ()}
        if allowed:
            why = f"Not allowed to {request.method} on {path}; it takes {', '.join(sorted(allowed))}."
            headers = {"Allow": ", ".join(sorted(allowed))}
            return ApiError(405, why, code="method_not_supported", headers=headers).response()
        why = f"Unknown request URL: {request.method} {path}. Check the path and the method."
        return ApiError(404, why, code="unknown_url").response()

    return routes


def application(service: Service, listen: str) -> FastAPI:
    """The whole ASGI application; it starts and closes the service with its lifespan."""
    settings = service.settings

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        title="Small First", version=__version__, description=DESCRIPTION, lifespan=lifespan,
        openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None,
    )  # fmt: skip
    for router in routers(service):
        app.include_router(router)

    def schema() -> dict[str, Any]:
        """FastAPI's, without the answer that it gives to what does not fit: ours is a 400, in OpenAI's shape."""
        if app.openapi_schema is None:
            made = FastAPI.openapi(app)
            for path, operations in made["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if settings.api_keys and callers.KEYED.fullmatch(path):
                        operation["security"] = [{"key": []}]
            if settings.api_keys:
                made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for unused in ("HTTPValidationError", "ValidationError"):
                made.get("components", {}).get("schemas", {}).pop(unused, None)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]

    @app.get("/", include_in_schema=False)
    async def front() -> Response:
        return RedirectResponse("/ondevice", 303)

    origins = [origin.rstrip("/") for origin in settings.allowed_origins]
    # The last one added stands outermost.
    app.add_middleware(callers.Allowance, a_minute=settings.api_rate)
    app.add_middleware(callers.KeyDoor, keys=callers.Keys(settings))
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"], expose_headers=list(EXPOSED), max_age=600,
        )  # fmt: skip
    rules = Rules(
        listen=listen,
        allowed_hosts=frozenset(host.lower() for host in settings.allowed_hosts),
        allowed_origins=frozenset(origins),
        upload_bytes=settings.upload_mb * 1_000_000,
    )
    app.add_middleware(Gate, rules=rules, uploads=Uploads(0), thread_of=lambda _: None)
    return app


def serve(host: str, port: int, settings: Settings) -> None:
    """Run the API until it is interrupted. A port that is taken, or an API for anybody, is a UserError."""
    check_port(host, port)
    callers.check(settings, host)
    service = Service(settings)
    address = shown_address(host, port)
    terminal.notices.print(f"API at {address}/v1, in the browser {address}/ondevice (Ctrl-C ends it)", markup=False)
    app = application(service, host)
    config = uvicorn.Config(app, host=host, port=port, log_level="error", timeout_graceful_shutdown=3)
    asyncio.run(Server(config).serve())
