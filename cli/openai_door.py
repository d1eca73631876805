"""Chat with a model through the front door: OpenAI's streaming protocol over the standard library's HTTP client.

Messages go in, pieces of the answer come out as they arrive; an error, before or inside the stream, is a `Failure`.
Called by `cli.chat`; it prints nothing. Protocol: OpenAI's chat completions, `stream: true`, server-sent events that
end with `data: [DONE]`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cli.client import Address, chunks, lines, opened
from core.errors import CODES, Failure

FIRST_BYTE_TIMEOUT_S = 600.0
"""Longest silence of the door: it ends a silent stream itself long before (settings door_*_timeout_s)."""
_LARGEST_ERROR_BYTES = 65536

_BY_OPENAI_CODE: Mapping[str, str] = {
    "invalid_api_key": "auth.invalid",
    "key_revoked": "auth.key_revoked",
    "key_expired": "auth.key_expired",
    "invalid_value": "request.invalid_field",
    "out_of_range": "request.out_of_range",
    "unknown_field": "request.unknown_field",
    "body_too_large": "request.body_too_large",
    "model_not_found": "registry.model_not_found",
    "context_length_exceeded": "door.context_length_exceeded",
    "endpoint_unsupported": "door.endpoint_unsupported",
    "invalid_request": "door.engine_refused",
    "model_not_ready": "door.model_not_ready",
    "no_routes": "door.no_routes",
    "engine_busy": "door.engine_busy",
    "engine_unreachable": "door.engine_unreachable",
    "engine_failed": "door.engine_failed",
    "engine_timeout": "door.engine_timeout",
    "internal_error": "internal.unexpected",
}
"""The codes of our front door's error objects, and OpenAI's own."""

_BY_STATUS: Mapping[int, str] = {
    400: "request.invalid_field",
    401: "auth.invalid",
    403: "auth.invalid",
    404: "registry.model_not_found",
    413: "request.body_too_large",
    429: "door.model_not_ready",
    503: "door.model_not_ready",
}


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How the model shall answer; None leaves the engine's default."""

    temperature: float | None = None
    max_tokens: int | None = None
    wants_usage: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an answer: `text` to show, `thought` of a model that thinks aloud, `usage` on the last piece."""

    text: str = ""
    thought: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)


class ChatDoor:
    """The front door of one cluster under an API key."""

    def __init__(self, url: str, key: str, *, hint: str) -> None:
        self._address = Address(url=url, who="front door", code="door.engine_unreachable", hint=hint)
        self._key = key

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], options: ChatOptions) -> Iterator[Piece]:
        """Yield the answer to `messages` as it is written; closing the iterator stops the engine's work.

        Raises:
            Failure: the door refused, the engine failed, or the stream ended before the answer did.
        """
        response = opened(
            self._address,
            "POST",
            "/chat/completions",
            headers={
                "Authorization": f"Bearer {self._key}",
                "Content-Type": "application/json",
                "Accept": "text/event-stream",
            },
            body=json.dumps(request_body(model, messages, options)).encode(),
            answer_timeout_s=FIRST_BYTE_TIMEOUT_S,
        )
        with response:
            if response.status >= 400:
                raise _refusal(response.status, response.read(_LARGEST_ERROR_BYTES), response.getheader("Retry-After"))
            yield from pieces(lines(chunks(response, self._address)))


def request_body(model: str, messages: Sequence[Mapping[str, str]], options: ChatOptions) -> dict[str, object]:
    """Return the JSON body of a streaming chat request."""
    body: dict[str, object] = {"model": model, "messages": list(messages), "stream": True}
    if options.temperature is not None:
        body["temperature"] = options.temperature
    if options.max_tokens is not None:
        body["max_tokens"] = options.max_tokens
    if options.wants_usage:
        body["stream_options"] = {"include_usage": True}
    return body


def pieces(stream: Iterator[str]) -> Iterator[Piece]:
    """Yield the pieces that the lines of an event stream carry.

    Raises:
        Failure: an event was an error, or the stream ended without `[DONE]`: a cut answer is never shown as a whole.
    """
    for data in events(stream):
        if data.startswith("[DONE]"):
            return
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Failure("door.engine_failed", "the front door sent an event that is no JSON", hint="try again")
        if found.get("error"):
            raise failure_of(found["error"], None)
        piece = _piece(found)
        if piece is not None:
            yield piece
    raise Failure("door.engine_failed", "the stream ended before the answer did", hint="`slice logs MODEL` may say why")


def events(stream: Iterator[str]) -> Iterator[str]:
    """Yield the data of each server-sent event (WHATWG HTML, 9.2.6): its `data:` lines joined, comments skipped."""
    data: list[str] = []
    for line in stream:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []
    if data:
        yield "\n".join(data)


def _piece(chunk: Mapping[str, Any]) -> Piece | None:
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    text, usage = delta.get("content") or "", chunk.get("usage") or {}
    thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
    return Piece(text=text, thought=thought, usage=usage) if text or thought or usage else None


def failure_of(error: object, status: int | None, *, retry_after_s: float | None = None) -> Failure:
    """Return the `Failure` of an OpenAI error object; `status` decides where its `code` is unknown."""
    fields = error if isinstance(error, Mapping) else {"message": str(error)}
    given = str(fields.get("code") or "")
    code = given if given in CODES else _BY_OPENAI_CODE.get(given) or _BY_STATUS.get(status or 0, "door.engine_failed")
    param = fields.get("param")
    return Failure(
        code,
        str(fields.get("message") or "no reason was given"),
        hint=str(fields.get("hint") or _HINTS.get(code, "")),
        param=str(param) if param is not None else None,
        retry_after_s=retry_after_s,
    )


_HINTS: Mapping[str, str] = {
    "auth.invalid": "`slice key create NAME` makes a key; give it with --key or SLICE_API_KEY",
    "door.engine_failed": "`slice ps` and `slice logs MODEL` say what happened",
    "door.model_not_ready": "`slice ps` shows what it waits for",
}


def _refusal(status: int, text: bytes, retry_after: str | None) -> Failure:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    error = found.get("error") if isinstance(found, dict) else None
    if not error:
        error = {"message": f"the front door answered HTTP {status} without a reason"}
    seconds = float(retry_after) if retry_after and retry_after.isdigit() else None
    return failure_of(error, status, retry_after_s=seconds)
