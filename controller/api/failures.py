"""One table from kinds of failures to HTTP: status and body of every error that the admin API answers.

Comes in: `Failure`s, FastAPI's own errors. Goes out: the documented error object, never a traceback or a driver's text.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from core.errors import Failure, Kind

STATUS: Mapping[Kind, HTTPStatus] = {
    Kind.USAGE: HTTPStatus.BAD_REQUEST,
    Kind.DENIED: HTTPStatus.UNAUTHORIZED,
    Kind.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Kind.CONFLICT: HTTPStatus.CONFLICT,
    Kind.TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Kind.FAILED: HTTPStatus.INTERNAL_SERVER_ERROR,
    Kind.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}

# Exceptions to "the status of the code's kind": HTTP has a word of its own for these.
_STATUS_OF_CODE: Mapping[str, HTTPStatus] = {"request.method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED}

_CODE_OF_PYDANTIC: Mapping[str, str] = {
    "json_invalid": "request.invalid_json",
    "extra_forbidden": "request.unknown_field",
    "greater_than": "request.out_of_range",
    "greater_than_equal": "request.out_of_range",
    "less_than": "request.out_of_range",
    "less_than_equal": "request.out_of_range",
    "string_too_long": "request.out_of_range",
    "string_too_short": "request.out_of_range",
}


_OTHER_RELEASE = "`slice version` says whether the CLI and the controller are of one release"


def response_to(failure: Failure) -> JSONResponse:
    """Return the answer that tells a client of `failure`."""
    status = _STATUS_OF_CODE.get(failure.code, STATUS[failure.kind])
    headers = {}
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(max(1, round(failure.retry_after_s or 2)))
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": failure.as_json()}, status_code=status.value, headers=headers)


def unexpected() -> Failure:
    """Return what a client is told of a fault of ours."""
    return Failure(
        "internal.unexpected", "the controller failed on this request", hint="its log says why; try again later"
    )


def install(app: FastAPI) -> None:
    """Let `app` answer every error in the documented shape."""

    async def on_failure(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Failure)
        return response_to(error)

    async def on_invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return response_to(_from_validation(error.errors()))

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return response_to(_from_http(error.status_code))

    async def on_bug(_: Request, error: Exception) -> JSONResponse:
        return response_to(unexpected())

    app.add_exception_handler(Failure, on_failure)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_bug)


def _from_validation(errors: Sequence[Any]) -> Failure:
    first = errors[0]
    code = _CODE_OF_PYDANTIC.get(first["type"], "request.invalid_field")
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if code == "request.invalid_json":
        return Failure(code, "the body is not valid JSON", hint="send one JSON object")
    if code == "request.unknown_field":
        return Failure(code, f"the field {str(param)[:80]!r} is not known", param=param)
    where = f"the field {param[:80]!r}" if param else "the body"
    message = str(first["msg"]).removeprefix("Value error, ")
    return Failure(code, f"{where} is not right: {message}", param=param)


def _from_http(status: int) -> Failure:
    if status == HTTPStatus.NOT_FOUND:
        return Failure("request.not_found", "there is nothing at this path", hint=_OTHER_RELEASE)
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return Failure("request.method_not_allowed", "this path does not take this method", hint=_OTHER_RELEASE)
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return Failure("request.invalid_json", "the body cannot be read", hint="send one JSON object in UTF-8")
    return unexpected()
