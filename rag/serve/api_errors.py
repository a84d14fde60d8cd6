"""What OpenAI's clients are told when something is wrong: a status, and `{"error": {message, type, param, code}}`.

Knows which of our errors is which of theirs; knows no route. `ApiRoute` is the one place where an error of a route becomes
an answer, whoever's application the route is part of.
"""

import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rag.errors import ModelError, PromptTooLong, QuestionTooLong, RagError, UserError
from rag.serve.visitors import VISITOR
from rag.words import told

OF_STATUS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""OpenAI's `type` of a status; of every other one it is invalid_request_error."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What the body of every error is."""

    error: ErrorDetail


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: that these errors have this body."""
    return {status: {"model": ErrorBody} for status in statuses}


class ApiError(Exception):
    """An error with its own status. `param` is the name of the parameter that is wrong, `code` OpenAI's word for it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: RagError, language: str) -> "ApiError":
        """400 for what the caller can mend, 503 for a model that does not answer, else 500."""
        why = told(error.told, language)
        if isinstance(error, PromptTooLong | QuestionTooLong):
            return cls(400, why, param="messages", code="context_length_exceeded")
        return cls(400 if isinstance(error, UserError) else 503 if isinstance(error, ModelError) else 500, why)

    @classmethod
    def of_validation(cls, error: RequestValidationError) -> "ApiError":
        """The first thing that is wrong with a request, named as the caller wrote it."""
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return cls(400, "The body is not JSON.")
        if "Expected UploadFile" in first["msg"]:
            return cls(400, "file: Send it as a file with a name, as in `-F file=@manual.pdf`.", param="file")
        # Where several forms are allowed, pydantic names them too; the caller knows only names and places of his own.
        path = [str(part) for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier()]
        param = ".".join(path)
        return cls(400, f"{param or first['loc'][0]}: {first['msg']}.", param=param or None)

    def body(self) -> dict[str, Any]:
        kind = OF_STATUS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JSONResponse(self.body(), self.status, headers=self.headers)


class ApiRoute(APIRoute):
    """A route whose errors are told as OpenAI's are, and whose every answer has a number by which it can be told from
    others."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def numbered(request: Request) -> Response:
            response = await answered(request)
            response.headers["x-request-id"] = f"req_{uuid.uuid4().hex}"
            return response

        async def answered(request: Request) -> Response:
            try:
                return await answer(request)
            except ApiError as error:
                return error.response()
            except RequestValidationError as error:
                return ApiError.of_validation(error).response()
            except RagError as error:
                return ApiError.of(error, VISITOR.get().language).response()
            except HTTPException as error:
                return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

        return numbered
