"""OpenAI's API at the door: its paths, key and body of a request, then the relay; every refusal in OpenAI's words.

Comes in: visits. Goes out: answers. Called by the app. It must not hold facts of its own, nor log what people write.
"""

from collections.abc import Awaitable, Callable, Mapping

from adapters.contract import Endpoint
from core.clock import Clock
from core.errors import Failure
from core.infra.entropy import SystemEntropy
from gateway.body import read_body
from gateway.gate import Gate
from gateway.openai import errors, fanout, models, requests
from gateway.passage import EVENTS, Passage
from gateway.refusals import unknown_model
from gateway.relay import Call, Relay
from gateway.responses import requests as responses
from gateway.responses.answers import Writer
from gateway.visit import Answer, Handler, Headers, Send, Visit

ENGINE_HEADERS = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
"""The client's headers that an engine may see; everything else, `x-slice-*` and `forwarded*` included, stays here."""
MAX_FORWARDED_VALUE_BYTES = 512
_MODEL_PREFIX = "/v1/models/"
JSON = (b"content-type", b"application/json")


class OpenAiSurface:
    """Owns every path that is no other API's, so that a mistyped one is answered in OpenAI's words."""

    def __init__(self, *, gate: Gate, relay: Relay, clock: Clock, body_limit_bytes: int) -> None:
        self._gate = gate
        self._relay = relay
        self._clock = clock
        self._body_limit_bytes = body_limit_bytes
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/health": {"GET": self._health, "HEAD": self._health},
            "/v1/models": {"GET": self._list_models},
            "/v1/chat/completions": {"POST": self._generating(Endpoint.CHAT)},
            "/v1/completions": {"POST": self._generating(Endpoint.COMPLETIONS)},
            "/v1/embeddings": {"POST": self._generating(Endpoint.EMBEDDINGS)},
            "/v1/responses": {"POST": self._respond},
        }
        self._one_model: Mapping[str, Handler] = {"GET": self._show_model}

    def owns(self, path: str) -> bool:
        """Return True: whatever no other surface owns is answered here."""
        return bool(path)

    def handler(self, method: str, path: str) -> Handler:
        """Return what serves a request; see `visit.Surface`."""
        methods = self._methods(path)
        if methods is None:
            raise Failure("request.not_found", f"Unknown URL: {method} {path[:200]}", hint="the API begins at /v1")
        handler = methods.get(method)
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise Failure("request.method_not_allowed", f"{method} is not allowed here", hint=f"use {allowed}")
        return handler

    def refusal(self, visit: Visit, failure: Failure) -> Answer:
        """Return OpenAI's four-field error object for `failure`."""
        headers = [JSON, *errors.error_headers(failure)]
        if failure.code == "request.method_not_allowed":
            headers.append((b"allow", ", ".join(sorted(self._methods(visit.path) or ())).encode()))
        return Answer(status=errors.status_of(failure), body=errors.error_body(failure), headers=headers)

    def _methods(self, path: str) -> Mapping[str, Handler] | None:
        return self._routes.get(path) or (self._one_model if path.startswith(_MODEL_PREFIX) else None)

    async def _health(self, visit: Visit) -> None:
        body = b'{"status":"ok","table_version":%d}' % self._gate.table.version
        await visit.answer(Answer(status=200, body=b"" if visit.method == "HEAD" else body, headers=[JSON]))

    async def _list_models(self, visit: Visit) -> None:
        table = self._gate.admit(visit)
        body = models.models_body(table.visible().values())
        await visit.answer(Answer(status=200, body=body, headers=[JSON]))

    async def _show_model(self, visit: Visit) -> None:
        table = self._gate.admit(visit)
        name = visit.path[len(_MODEL_PREFIX) :]
        route = table.visible().get(name)
        if route is None:
            raise unknown_model(table, name)
        await visit.answer(Answer(status=200, body=models.model_body(route), headers=[JSON]))

    def _generating(self, endpoint: Endpoint) -> Callable[[Visit], Awaitable[None]]:
        async def handle(visit: Visit) -> None:
            self._gate.admit(visit)
            visit.tally.endpoint = endpoint.value
            body = await checked_body(visit, self._body_limit_bytes)
            await carry(self._relay, visit, endpoint, body, visit.send)

        return handle

    async def _respond(self, visit: Visit) -> None:
        self._gate.admit(visit)
        visit.tally.endpoint = Endpoint.CHAT.value
        wanted = responses.wanted(await checked_body(visit, self._body_limit_bytes))
        writer = Writer(wanted.echo, token=SystemEntropy().token_bytes(12).hex(), clock=self._clock)
        stream, whole = (writer, writer.replayed) if wanted.is_stream else (None, writer.whole)
        passage = Passage(visit, stream=stream, whole=whole, headers=[], kind=EVENTS)
        try:
            await carry(self._relay, visit, Endpoint.CHAT, wanted.body, passage)
        except Failure as failure:
            raise responses.retold(failure) from failure


async def carry(relay: Relay, visit: Visit, endpoint: Endpoint, body: bytes, send: Send) -> None:
    """Send an engine's answer to `body`, a request in OpenAI's words, by `send`; every API's requests pass here.

    Raises:
        Failure: the request is none, or no engine answered; nothing was sent.
        ClientGone: the client left.
        ClientStalled: the client stopped reading.
    """
    asked = requests.asked(endpoint, body)
    tally = visit.tally
    tally.endpoint, tally.model, tally.is_stream = endpoint.value, asked.model, asked.is_stream
    call = Call(
        endpoint=endpoint,
        asked=asked,
        body=body,
        headers=engine_headers(visit),
        started_s=visit.started_s,
        tally=tally,
    )
    is_fan = asked.choices > 1 and relay.gives_one(asked.model)
    await visit.while_connected(fanout.answer(relay, call, send) if is_fan else relay.answer(call, send))


async def checked_body(visit: Visit, limit_bytes: int) -> bytes:
    """Return the visit's whole body.

    Raises:
        Failure: `request.invalid_field` for a coded one, or those of `body.read_body`.
        ClientGone: the client left.
    """
    if visit.header(b"content-encoding") not in (None, b"", b"identity"):
        raise Failure("request.invalid_field", "Encoded bodies are not supported", hint="send plain JSON")
    return await read_body(visit.receive, visit.header(b"content-length"), limit_bytes)


def engine_headers(visit: Visit) -> Headers:
    """Return those of the client's headers that an engine may see, and a trace where the client began none."""
    headers = [
        (key, value)
        for key, value in visit.scope["headers"]
        if key in ENGINE_HEADERS
        and len(value) <= MAX_FORWARDED_VALUE_BYTES
        and b"\r" not in value
        and b"\n" not in value
    ]
    if visit.header(b"traceparent") is None:
        # Spans of the door are no spans yet, so its parent is named after the trace; 01: keep what you record of it.
        headers.append((b"traceparent", f"00-{visit.trace_id}-{visit.trace_id[:16]}-01".encode()))
    return headers
