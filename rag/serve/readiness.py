"""Stub."""

from fastapi import APIRouter

from rag.serve.service import Service


def router(service: Service) -> APIRouter:
    return APIRouter()
