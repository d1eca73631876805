"""Failures in OpenAI's words: the one table from our codes to (status, type, code), and the bodies made of it.

Comes in: a `Failure`, or an engine's error reply. Goes out: the status, headers and four-field error object of
https://github.com/openai/openai-openapi (`Error`: message, type, param, code; code is a string or null). Called by the
app and the relay. It must not let an engine's raw text through: what an engine says of a request is shortened and
cleaned (`refusal_text`), and dropped when it looks like a path, an address or a stack.
"""

import re
from collections.abc import Mapping

import msgspec

from core.errors import Failure

TABLE: Mapping[str, tuple[int, str, str | None]] = {
    "auth.missing": (401, "invalid_request_error", "invalid_api_key"),
    "auth.invalid": (401, "invalid_request_error", "invalid_api_key"),
    "auth.key_revoked": (401, "invalid_request_error", "key_revoked"),
    "auth.key_expired": (401, "invalid_request_error", "key_expired"),
    "request.invalid_json": (400, "invalid_request_error", "invalid_json"),
    "request.invalid_field": (400, "invalid_request_error", "invalid_value"),
    "request.unknown_field": (400, "invalid_request_error", "unknown_field"),
    "request.out_of_range": (400, "invalid_request_error", "out_of_range"),
    "request.body_too_large": (413, "invalid_request_error", "body_too_large"),
    "request.body_timeout": (408, "invalid_request_error", "request_timeout"),
    "request.not_found": (404, "invalid_request_error", "unknown_url"),
    "request.method_not_allowed": (405, "invalid_request_error", "method_not_allowed"),
    "registry.model_not_found": (404, "invalid_request_error", "model_not_found"),
    "door.endpoint_unsupported": (400, "invalid_request_error", "endpoint_unsupported"),
    "door.context_length_exceeded": (400, "invalid_request_error", "context_length_exceeded"),
    "door.parameter_unsupported": (400, "invalid_request_error", "unsupported_parameter"),
    "door.engine_refused": (400, "invalid_request_error", "invalid_request"),
    "door.operators_matter": (403, "invalid_request_error", "operators_matter"),
    "door.model_not_ready": (503, "server_error", "model_not_ready"),
    "door.model_disabled": (503, "server_error", "model_disabled"),
    "door.no_routes": (503, "server_error", "no_routes"),
    "door.engine_busy": (503, "server_error", "engine_busy"),
    "door.engine_unreachable": (503, "server_error", "engine_unreachable"),
    "door.engine_failed": (502, "server_error", "engine_failed"),
    "door.engine_timeout": (504, "server_error", "engine_timeout"),
}
"""One line per failure that the door may answer with; any other is a 500 without detail."""

_UNKNOWN = (500, "server_error", "internal_error")
_UNKNOWN_TEXT = "The front door failed to answer this request; try again, and tell the operator if it stays."
_NEVER_RETRY = frozenset({"door.engine_timeout", "door.model_disabled"})
"""The SDK retries every 5xx: after a timeout that would load a slow engine again, and nothing enables by itself."""
_OVERFLOW_CODE = "context_length_exceeded"
"""OpenAI's own, and so that of every engine elsewhere that is a door like this one."""
_LONGEST_REFUSAL = 300
_TELLTALE = re.compile(
    r"traceback|exception|\.(?:py|cpp|cc|go|rs|cu|hpp?)\b|(?:^|[\s'\"(=])/[\w.-]+/|https?://|\b\d{1,3}(?:\.\d{1,3}){3}\b"
    r"|0x[0-9a-f]{4,}|api.?key|bearer|site-packages",
    re.IGNORECASE,
)
_encode = msgspec.json.Encoder().encode


class EngineError(msgspec.Struct):
    """The parts of an engine's error object that we read; engines disagree on everything else."""

    message: object = None
    type: object = None
    param: object = None
    code: object = None
    http_status_code: object = None  # TGI, inside a stream

    @property
    def status(self) -> int | None:
        """The HTTP status that an error inside a stream would have had."""
        found = self.code if self.http_status_code is None else self.http_status_code
        return found if isinstance(found, int) and 400 <= found <= 599 else None


class _Nested(msgspec.Struct):
    error: EngineError


class _Flat(msgspec.Struct):
    error: str | None = None
    error_type: str | None = None  # TGI
    message: str | None = None  # older vLLM
    type: str | None = None


def status_of(failure: Failure) -> int:
    """Return the HTTP status of `failure`."""
    return TABLE.get(failure.code, _UNKNOWN)[0]


def text_of(failure: Failure) -> str:
    """Return what a client may read of `failure`."""
    return str(failure) if failure.code in TABLE else _UNKNOWN_TEXT


def error_body(failure: Failure) -> bytes:
    """Return the JSON object that carries `failure`; nothing of a failure outside `TABLE` is shown."""
    known = TABLE.get(failure.code)
    _, kind, code = known or _UNKNOWN
    param = failure.param if known else None
    return _encode({"error": {"message": text_of(failure), "type": kind, "param": param, "code": code}})


def error_event(failure: Failure) -> bytes:
    """Return the server-sent event that ends a broken stream; no `[DONE]` follows, so the SDK raises."""
    return b"data: " + error_body(failure) + b"\n\n"


def error_headers(failure: Failure) -> list[tuple[bytes, bytes]]:
    """Return the headers besides the content type: when to come back, and whether to try again at all."""
    headers = []
    if failure.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(failure.retry_after_s))).encode()))
    if failure.code in _NEVER_RETRY:
        headers.append((b"x-should-retry", b"false"))
    return headers


def engine_error(body: bytes) -> EngineError:
    """Return what an engine's error reply says; empty when it is in no shape we know.

    A text that is itself such an object is looked into once: Ollama passes on what its llama.cpp answered.
    """
    error = _engine_error(body)
    if isinstance(error.message, str) and error.message.startswith("{"):
        inner = _engine_error(error.message.encode())
        return inner if inner.message is not None else error
    return error


def _engine_error(body: bytes) -> EngineError:
    try:
        return msgspec.json.decode(body, type=_Nested).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        flat = msgspec.json.decode(body, type=_Flat)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return EngineError()
    return EngineError(message=flat.error or flat.message, type=flat.error_type or flat.type)


def refusal_text(message: object) -> str:
    """Return an engine's remark on a request as one short clean line, or an empty string when it is not fit to show."""
    if not isinstance(message, str):
        return ""
    line = " ".join("".join(char if char.isprintable() else " " for char in message[: 4 * _LONGEST_REFUSAL]).split())
    if not line or len(line) > _LONGEST_REFUSAL or _TELLTALE.search(line):
        return ""
    return line


def engine_failure(
    status: int,
    body: bytes,
    overflow_types: frozenset[str],
    model: str,
    *,
    overflow_phrases: tuple[str, ...] = (),
    refusal_phrases: tuple[str, ...] = (),
    content: str = "messages",
) -> Failure:
    """Return our failure for an engine's reply of `status` (400 to 599, or 200 for an error inside a stream).

    `content` is the field that holds what the model reads. The decision, first match wins:
    1. an error type of the dialect's `overflow_types`, or a message with one of its phrases: the prompt does not fit
    2. 400, 413, 422, or one of its `refusal_phrases`: the engine refuses the request; its cleaned words are shown
    3. 429, 503: the engine is busy or still loading; another replica may do
    4. anything else, 401, 403 and 404 included (our own key and path, not the client's): the engine failed
    """
    error = engine_error(body)
    status = (error.status or status) if status == 200 else status
    said = error.message if isinstance(error.message, str) else ""
    kinds = {kind for kind in (error.type, error.code) if isinstance(kind, str)}
    if kinds & {*overflow_types, _OVERFLOW_CODE} or any(phrase in said for phrase in overflow_phrases):  # 1
        return Failure(
            "door.context_length_exceeded",
            f"The prompt does not fit into the context of model '{model}'",
            hint=f"shorten '{content}' or ask for fewer tokens",
            param=content,
        )
    if status in (400, 413, 422) or any(phrase in said for phrase in refusal_phrases):  # 2
        text = refusal_text(error.message)
        return Failure(
            "door.engine_refused",
            f"Model '{model}' refused this request" + (f": {text}" if text else ""),
            hint="" if text else "check the parameters that the model's engine supports",
            param=error.param if isinstance(error.param, str) and error.param.isidentifier() else None,
        )
    if status in (429, 503):  # 3
        return Failure("door.engine_busy", f"Model '{model}' is busy", hint="try again in a moment", retry_after_s=1)
    return Failure(  # 4
        "door.engine_failed", f"The engine of model '{model}' failed to answer", hint="try again", retry_after_s=1
    )
