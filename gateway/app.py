"""The front door as a raw ASGI application: dispatch, key, body, then the relay; every refusal in OpenAI's words.

Comes in: ASGI calls of Serve's or a bare uvicorn's server. Goes out: answers. Built by `door.Door`. It must not hold
facts of its own (the table, the counts and the connections belong to others), log what people write, or add
`x-request-id` (Serve's middleware does).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from adapters.contract import Endpoint
from core.clock import Clock
from core.errors import Failure
from core.infra.logs import Log
from gateway import keys
from gateway.body import ClientGone, Receive, discard_body, read_body
from gateway.openai import errors, models, requests
from gateway.refusals import unknown_model
from gateway.relay import Call, ClientStalled, Relay, Send
from gateway.table import Table

Scope = Mapping[str, Any]
Handler = Callable[[Scope, Receive, Send, float], Awaitable[None]]

ENGINE_HEADERS = frozenset({b"x-request-id", b"traceparent", b"tracestate"})
"""The client's headers that an engine may see; everything else, `x-slice-*` and `forwarded*` included, stays here."""
MAX_FORWARDED_VALUE_BYTES = 512
_MODEL_PREFIX = "/v1/models/"
_JSON = (b"content-type", b"application/json")


class DoorApp:
    """One door; `table` gives the current snapshot, `lifespan` hooks start and stop what works in the background."""

    def __init__(
        self,
        *,
        relay: Relay,
        table: Callable[[], Table],
        pepper: bytes,
        body_limit_bytes: int,
        clock: Clock,
        log: Log,
        on_start: Callable[[], Awaitable[None]],
        on_stop: Callable[[], Awaitable[None]],
    ) -> None:
        self._relay = relay
        self._table = table
        self._pepper = pepper
        self._body_limit_bytes = body_limit_bytes
        self._clock = clock
        self._log = log
        self._on_start = on_start
        self._on_stop = on_stop
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/health": {"GET": self._health, "HEAD": self._health},
            "/v1/models": {"GET": self._list_models},
            "/v1/chat/completions": {"POST": self._generating(Endpoint.CHAT)},
            "/v1/completions": {"POST": self._generating(Endpoint.COMPLETIONS)},
            "/v1/embeddings": {"POST": self._generating(Endpoint.EMBEDDINGS)},
        }
        self._one_model: Mapping[str, Handler] = {"GET": self._show_model}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the process's life."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._on_start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._on_stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = self._clock.monotonic()
        answered = _Answered(send)
        failure: Failure
        try:
            await self._handler(scope)(scope, receive, answered, started_s)
            return
        except Failure as error:
            failure = error
        except ClientGone:
            return
        except ClientStalled:
            self._log.info("client_stalled", path=scope["path"])
            return
        except Exception as error:  # noqa: BLE001 - the outermost frame of a request
            self._log.error("request_failed", path=scope["path"], exc=error)
            failure = Failure("internal.unexpected", "unexpected")
        if failure.code == "request.body_too_large" and _header(scope, b"expect") is None:
            await discard_body(receive)
        if not answered.has_begun:
            await self._refuse(scope, send, failure)

    def _handler(self, scope: Scope) -> Handler:
        path = scope["path"]
        methods = self._routes.get(path) or (self._one_model if path.startswith(_MODEL_PREFIX) else None)
        if methods is None:
            raise Failure(
                "request.not_found", f"Unknown URL: {scope['method']} {path[:200]}", hint="the API begins at /v1"
            )
        handler = methods.get(scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise Failure("request.method_not_allowed", f"{scope['method']} is not allowed here", hint=f"use {allowed}")
        return handler

    async def _refuse(self, scope: Scope, send: Send, failure: Failure) -> None:
        headers = errors.error_headers(failure)
        if failure.code == "request.method_not_allowed":
            methods = self._routes.get(scope["path"]) or self._one_model
            headers.append((b"allow", ", ".join(sorted(methods)).encode()))
        if failure.code in ("request.body_too_large", "request.body_timeout"):
            headers.append((b"connection", b"close"))  # what may still come of the body is not read
        await _respond(send, errors.status_of(failure), errors.error_body(failure), headers)

    async def _health(self, scope: Scope, _: Receive, send: Send, __: float) -> None:
        body = b'{"status":"ok","table_version":%d}' % self._table().version
        await _respond(send, 200, b"" if scope["method"] == "HEAD" else body)

    async def _list_models(self, scope: Scope, _: Receive, send: Send, __: float) -> None:
        table = self._checked_table(scope)
        await _respond(send, 200, models.models_body(table.visible().values()))

    async def _show_model(self, scope: Scope, _: Receive, send: Send, __: float) -> None:
        table = self._checked_table(scope)
        name = scope["path"][len(_MODEL_PREFIX) :]
        route = table.visible().get(name)
        if route is None:
            raise unknown_model(table, name)
        await _respond(send, 200, models.model_body(route))

    def _generating(self, endpoint: Endpoint) -> Handler:
        async def handle(scope: Scope, receive: Receive, send: Send, started_s: float) -> None:
            self._checked_table(scope)
            coding = _header(scope, b"content-encoding")
            if coding not in (None, b"", b"identity"):
                raise Failure("request.invalid_field", "Encoded bodies are not supported", hint="send plain JSON")
            body = await read_body(receive, _header(scope, b"content-length"), self._body_limit_bytes)
            call = Call(
                endpoint=endpoint,
                asked=requests.asked(endpoint, body),
                body=body,
                headers=_engine_headers(scope),
                started_s=started_s,
            )
            await _while_connected(receive, self._relay.answer(call, send))

        return handle

    def _checked_table(self, scope: Scope) -> Table:
        table = self._table()
        if table.version == 0 and not table.keys:
            raise Failure(
                "door.no_routes", "The front door has no routes yet", hint="the controller starts", retry_after_s=2
            )
        keys.caller(_header(scope, b"authorization"), table.keys, self._pepper, self._clock.now().timestamp())
        return table


class _Answered:
    """ASGI's `send`, remembering whether a response has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False

    async def __call__(self, message: Any) -> None:
        self.has_begun = True
        await self._send(message)


async def _while_connected(receive: Receive, work: Any) -> None:
    """Await `work` and cancel it when the client leaves: before, between and during the engine's bytes alike."""
    failure: Failure | ClientStalled | None = None
    try:
        async with asyncio.TaskGroup() as group:
            watcher = group.create_task(_leave(receive))
            try:
                await work
            except (Failure, ClientStalled) as error:
                failure = error  # carried out of the group bare
            finally:
                watcher.cancel()
    except* ClientGone:
        failure = None
    if failure is not None:
        raise failure


async def _leave(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGone


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


def _engine_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [
        (key, value)
        for key, value in scope["headers"]
        if key in ENGINE_HEADERS
        and len(value) <= MAX_FORWARDED_VALUE_BYTES
        and b"\r" not in value
        and b"\n" not in value
    ]


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    head = [_JSON, (b"content-length", str(len(body)).encode()), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
