"""The page on which the small model runs inside the browser, at `/ondevice`, and what it asks of this server.

page.py     the page, its files, and llama.cpp as WebAssembly (vendor/, brought by scripts/vendor_wllama.py)
shelf.py    the weights that a browser may fetch
turns.py    the prompt that a browser's model is sent, and the verdict on what it wrote
"""

from fastapi import APIRouter

from rag.serve.ondevice import page, shelf, turns
from rag.serve.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    routes.include_router(shelf.router(shelf.Shelf(service.settings)))
    routes.include_router(turns.router(service))
    routes.include_router(page.router())
    return routes
