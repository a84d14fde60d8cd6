"""Stub."""

from fastapi import APIRouter

from rag.corpus.library import Library
from rag.settings import Settings


class Files:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def router(files: Files, library: Library) -> APIRouter:
    return APIRouter()
